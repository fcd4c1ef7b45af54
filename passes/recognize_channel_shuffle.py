"""RecognizeChannelShuffle: reshape, transpose, reshape that only reorder channels become one gather.

    x[N, C, H, W] -> reshape [N, g, C/g, H, W] -> permute_dims (0, 2, 1, 3, 4) -> reshape [N, C, H, W]
        ->   take(x, order, axis=1)

Requires   static shapes; nobody else reads what is in between.
Ensures    the shuffle of ShuffleNet (Zhang et al. 2017, arXiv:1707.01083) is one kernel in the packed layout.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, constant, op_name, shape_of


@tvm.transform.module_pass(opt_level=0, name="RecognizeChannelShuffle")
class RecognizeChannelShuffle:
    """Replace shuffles by `take` along the channels."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with shuffles recognised."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            found = _shuffle(binding.value, flow)
            if found is None:
                return None
            source, order = found
            return relax.op.take(new.translate(source), constant(order), axis=1)

        return rebuild(mod, rewrite)


def _shuffle(last: Expr, flow: Dataflow) -> tuple[Expr, np.ndarray] | None:
    """(source, order of its channels) when `last` ends a shuffle."""
    if op_name(last) != "reshape" or len(shape_of(last)) != 4:
        return None
    permute = flow.value(last.args[0])
    if op_name(permute) != "permute_dims" or flow.only_consumer(last.args[0]) is None:
        return None
    first = flow.value(permute.args[0])
    if op_name(first) != "reshape" or flow.only_consumer(permute.args[0]) is None:
        return None
    source, axes = first.args[0], permute.attrs.axes
    if shape_of(source) != shape_of(last) or axes is None:
        return None
    split, (n, channels, height, width) = shape_of(first), shape_of(last)
    axes = [int(axis) for axis in axes]
    pixels = _pixel_axes(split, n, height * width)
    if pixels is None or axes[0] != 0 or axes[pixels:] != list(range(pixels, len(split))):
        return None
    order = np.arange(channels, dtype=np.int32).reshape(split[1:pixels])
    return source, np.ascontiguousarray(order.transpose([axis - 1 for axis in axes[1:pixels]])).reshape(-1)


def _pixel_axes(split: tuple[int, ...], n: int, pixels: int) -> int | None:
    """Where the axes of pixels begin in [N, channel axes..., pixel axes...]."""
    if split[0] != n:
        return None
    for first in range(len(split) - 1, 1, -1):
        if int(np.prod(split[first:])) == pixels:
            return first
    return None

"""OverlayChannels: concatenations and slices of channels without copies, wherever blocks of channels stay whole.

    a = conv(x); b = conv(y); c = concat(a, b)      ->   c = overlay(a, b): the convolutions write to parts of c
    b = a[:, 32:64]                                 ->   b = overlay(a): whoever reads b reads a part of a
    c = concat(a, rescaled b, a)                    ->   c = overlay(a, copy(b, a)): one copy, of what cannot stay

In NCHW16c, one image's channels are a range of memory, so a part of a concatenation is one, too, when it begins with a
block.  A nested concatenation lies in the outer one's memory, and a slice of it in the same.

Requires   AssignLayouts.
Ensures    gathers whose parts need no rescaling, are written by kernels (or are such parts again), and are no outputs
           are gone; of the others, the parts that can stay are not copied.  No kernel writes where another one does.
Not        more than one image: their parts are not ranges.  Parts that begin inside a block of 16 channels.  A tensor's
           second place in the same or another concatenation, unless it is the same one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax

from tvm_int8.kernel_op import inputs_of, is_kernel, kernel_call, spec_of, stored_of
from tvm_int8.overlay_op import is_overlay, overlay
from tvm_int8.specs import LANES, NOTHING, ChannelGather, Tensor

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var
from .gather_parts import Part, parts_of
from .shared_memory import Piece, SharedMemory

COPY_BYTES = 8 << 10
"""What a call of a copying kernel costs, in bytes copied: about 0.2 us."""


@tvm.transform.module_pass(opt_level=0, name="OverlayChannels")
class OverlayChannels:
    """Replace gathers of channels by shared memory."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with fewer gathers; one that has overlays already stays as it is."""
        flow = Dataflow(mod)
        if any(is_overlay(binding.value) for binding in flow.bindings):
            return mod
        return rebuild(mod, _Overlays(flow))


@dataclass
class _Choice:
    """Where a gather's result would lie: parts that stay where they are, and runs of blocks to be copied."""

    base: Piece
    offset: int
    stay: list[Part]
    copied: list[tuple[int, int]]


class _Overlays:
    """The rewrite; knows the memory of every packed tensor that a kernel has written so far."""

    def __init__(self, flow: Dataflow):
        self.flow = flow
        self.memory = SharedMemory()

    def __call__(self, binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
        if not is_kernel(value):
            return None
        spec, var = spec_of(value), binding.var
        if isinstance(spec, ChannelGather) and spec.result.block and not self.flow.is_output(var):
            result = self._overlay(spec, value, var, new)
            if result is not None:
                return result
        if spec.result.block == LANES and not self.flow.is_output(var):
            self.memory.write(var, _bytes(spec.result))
        return None

    def _overlay(self, spec: ChannelGather, call: relax.Call, var: Var, new: Rebuilder) -> Expr | None:
        choice = self._choose(spec, inputs_of(call)) if spec.result.shape[0] == 1 else None
        if choice is None:
            return None
        inputs, offsets, plane = [], [], _plane(spec.result)
        for begin, end in choice.copied:
            order = _gather_of_blocks(spec, call, begin, end)
            copy = new.emit(order, f"{var.name}_copied")
            self.memory.write(copy, (end - begin) * plane)
            inputs.append(copy)
            offsets.append(begin * plane)
        for part in choice.stay:
            inputs.append(inputs_of(call)[part.tensor])
            offsets.append((part.begin - part.source) * plane)
        self.memory.overlay(var, inputs, offsets)
        return overlay(inputs, offsets, spec.result.physical_shape, spec.result.dtype)

    def _choose(self, spec: ChannelGather, inputs: Sequence[Expr]) -> _Choice | None:
        """The cheapest of all places beside one of the parts; None when copying everything is as good."""
        parts, plane = parts_of(spec), _plane(spec.result)
        movable = [part for part in parts if part.tensor is not None and inputs[part.tensor] in self.memory]
        movable.sort(key=lambda part: part.begin - part.end)
        best, least = None, _cost([(0, spec.result.channel_blocks)], plane)
        for first in movable:
            choice = self._beside(first, movable, parts, inputs, plane)
            if choice is not None and (cost := _cost(choice.copied, plane)) < least:
                best, least = choice, cost
        return best

    def _beside(self, first: Part, movable, parts, inputs, plane: int) -> _Choice | None:
        """The result's place when `first` stays where it is; None when the copies would not find room."""
        home = self.memory.piece(inputs[first.tensor])
        start = home.offsets[inputs[first.tensor]] + (first.source - first.begin) * plane
        base, joined, stay = Piece(home.offsets, list(home.written)), {home: 0}, []
        for part in [first, *(part for part in movable if part is not first)]:
            var = inputs[part.tensor]
            piece = self.memory.piece(var)
            shift = start + (part.begin - part.source) * plane - piece.offsets[var]
            if piece not in joined and base.has_room_for(piece, shift):
                joined[piece] = shift
                base.written += [(low + shift, high + shift) for low, high in piece.written]
            if joined.get(piece) == shift:
                stay.append(part)
        copied = _runs([part for part in parts if part not in stay])
        if not all(base.is_free(start + begin * plane, start + end * plane) for begin, end in copied):
            return None
        return _Choice(base, start, stay, copied)


def _plane(tensor: Tensor) -> int:
    """Bytes of one block of channels."""
    return math.prod(tensor.shape[2:]) * LANES * np.dtype(tensor.dtype).itemsize


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.physical_shape) * np.dtype(tensor.dtype).itemsize


def _cost(copied: Sequence[tuple[int, int]], plane: int) -> int:
    return sum((end - begin) * plane + COPY_BYTES for begin, end in copied)


def _runs(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Neighbouring parts as one (begin, end)."""
    runs: list[tuple[int, int]] = []
    for part in parts:
        begin = runs.pop()[0] if runs and runs[-1][1] == part.begin else part.begin
        runs.append((begin, part.end))
    return runs


def _gather_of_blocks(spec: ChannelGather, call: relax.Call, begin: int, end: int) -> relax.Call:
    """The order for blocks [begin, end) of a gather."""
    source = spec.source[begin * LANES : end * LANES]
    used = [i for i in range(len(spec.inputs)) if any(tensor == i for tensor, _ in source)]
    number = {old: new for new, old in enumerate(used)}
    n, _, h, w = spec.result.shape
    part = replace(
        spec,
        inputs=tuple(spec.inputs[i] for i in used),
        result=replace(spec.result, shape=(n, len(source), h, w)),
        source=tuple(item if item == NOTHING else (number[item[0]], item[1]) for item in source),
        scales=tuple(spec.scales[i] for i in used),
        zero_points=tuple(spec.zero_points[i] for i in used),
    )
    inputs = [inputs_of(call)[i] for i in used]
    return kernel_call(part, inputs, [], "", part.result.physical_shape, stored_of(call))

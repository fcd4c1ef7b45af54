"""Plain NHWC from the packed layout.

Algorithm: out[n, y, x, c] = in[n, c, y, x].

Schedule: the channels of a pixel are vectors on both sides, so a pixel is as many loads and stores as it has blocks,
the last one masked.  Pixels are shared out to the threads.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, ChannelsLast, Kernel, Spec

from .cpu import Cpu
from .lanes import elements, first_lanes, store_masked, tasks
from .rule import Constants, Rule
from .vector import KernelBuilder, let, load, store


class ChannelsLastRule(Rule):
    """Delivers every `ChannelsLast` of a packed tensor."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Blocks of sixteen in, plain out."""
        return isinstance(spec, ChannelsLast) and spec.inputs[0].block == LANES and spec.result.block == 0

    def build(self, spec: ChannelsLast, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        with KernelBuilder("channels_last") as k:
            source, out = k.arguments(
                ("data", spec.inputs[0].physical_shape, spec.result.dtype),
                ("out", spec.result.physical_shape, spec.result.dtype),
            )
            _emit(spec, source, out, cpu)
        return Kernel(k.func, (), "channels_last")


def _emit(spec: ChannelsLast, source, out, cpu) -> None:
    n, channels, height, width = spec.inputs[0].shape
    pixels, blocks = height * width, spec.inputs[0].channel_blocks
    with tasks(n, pixels, elements(spec), cpu) as task, T.serial(task.count) as i:
        pixel = let(task.begin + i)
        target = let((task.plane * pixels + pixel) * channels)

        def vector(block):
            return load(source, ((task.plane * blocks + block) * pixels + pixel) * LANES)

        with T.serial(channels // LANES) as block:
            store(out, target + block * LANES, vector(block))
        if channels % LANES:
            last = target + channels - channels % LANES
            store_masked(out, last, let(vector(blocks - 1)), first_lanes(channels % LANES))

"""Pixels out of channels, the sub-pixel layer of super-resolution networks.

Algorithm: out[c, y * r + i, x * r + j] = in[c * r * r + i * r + j, y, x], or in[(i * r + j) * C + c, y, x].

Schedule: packed to packed, r * r vectors of sixteen channels of a pixel become those of r * r pixels: by a shuffle, or
as they are where a pixel's channels lie together.  The network's output, of few channels, is written plain: sixteen
pixels by sixteen channels are transposed in registers, and the rows of r channels interleaved.  Rows are shared out to
the threads.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, DepthToSpace, Kernel, Spec

from .cpu import Cpu
from .lanes import elements, first_lanes, shuffle, store_masked, tasks, transpose
from .rule import Constants, Rule
from .vector import KernelBuilder, let, load, store


class DepthToSpaceRule(Rule):
    """Delivers every `DepthToSpace` of a packed tensor."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Blocks of sixteen in, the same or plain out."""
        if not isinstance(spec, DepthToSpace) or spec.inputs[0].block != LANES:
            return False
        if spec.result.block == LANES:
            return spec.adjacent or spec.result.shape[1] % LANES == 0
        return spec.result.block == 0 and spec.can_be_plain

    def build(self, spec: DepthToSpace, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        with KernelBuilder("depth_to_space") as k:
            source, out = k.arguments(
                ("data", spec.inputs[0].physical_shape, spec.result.dtype),
                ("out", spec.result.physical_shape, spec.result.dtype),
            )
            (_packed if spec.result.block else _plain)(spec, source, out, cpu)
        return Kernel(k.func, (), "depth_to_space")


def _packed(spec: DepthToSpace, source, out, cpu) -> None:
    n, _, height, width = spec.inputs[0].shape
    r, blocks, source_blocks = spec.factor, spec.result.channel_blocks, spec.inputs[0].channel_blocks
    places = r * r
    with tasks(n * blocks, height, elements(spec), cpu) as task, T.serial(task.count) as row:
        y, image, block = let(task.begin + row), let(task.plane // blocks), let(task.plane % blocks)
        rows = []
        for place in range(places):
            wanted = block * places + place if spec.adjacent else place * blocks + block
            if blocks * places != source_blocks:
                wanted = T.min(wanted, source_blocks - 1)  # for lanes of padding only
            rows.append(let(((image * source_blocks + wanted) * height + y) * width))
        with T.serial(width) as x:
            pixels = [let(load(source, (first + x) * LANES)) for first in rows]
            if spec.adjacent:
                pixels = [shuffle(pixels, range(place, places * LANES, places)) for place in range(places)]
            for place, pixel in enumerate(pixels):
                line = (task.plane * height + y) * r + place // r
                store(out, ((line * width + x) * r + place % r) * LANES, pixel)


def _plain(spec: DepthToSpace, source, out, cpu) -> None:
    n, _, height, width = spec.inputs[0].shape
    r, channels, source_blocks = spec.factor, spec.result.shape[1], spec.inputs[0].channel_blocks

    def tile(image, y, first, count):
        rows = []
        for block in range(source_blocks):
            start = let(((image * source_blocks + block) * height + y) * width + first)
            rows += transpose([let(load(source, (start + min(i, count - 1)) * LANES)) for i in range(LANES)])
        for c in range(channels):
            for i in range(r):
                line = [rows[spec.source_channel(c, i * r + j)] for j in range(r)]
                target = let((((image * channels + c) * height + y) * r + i) * width * r + first * r)
                _interleave(out, target, line, count)

    with tasks(n, height, elements(spec), cpu) as task, T.serial(task.count) as row:
        y = let(task.begin + row)
        if width >= LANES:
            with T.serial(width // LANES) as index:
                tile(task.plane, y, index * LANES, LANES)
        if width % LANES:
            tile(task.plane, y, width - width % LANES, width % LANES)


def _interleave(out, target, line, count: int) -> None:
    """Store `count` pixels of each vector in turn."""
    r = len(line)
    for part in range(r):
        lanes = [part * LANES + lane for lane in range(LANES)]
        value = let(shuffle(line, [lane % r * LANES + lane // r for lane in lanes]))
        left = count * r - part * LANES
        if left >= LANES:
            store(out, target + part * LANES, value)
        elif left > 0:
            store_masked(out, target + part * LANES, value, first_lanes(left))

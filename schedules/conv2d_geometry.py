"""Sizes of a direct convolution (see `conv2d`): phases, the reduction and its steps, what is padded."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_int8.specs import LANES, Conv2d


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a phase: output t * out_step + out_offset reads inputs t * in_step + first + i * tap_step."""

    count: int  # outputs of this phase
    out_step: int
    out_offset: int
    in_step: int
    first: int
    tap_step: int
    taps: tuple[int, ...]  # indices into the kernel, in the order of i

    def reads(self) -> tuple[int, int]:
        """Lowest and highest input index read (empty phases read nothing)."""
        if not self.taps or not self.count:
            return 0, 0
        ends = [self.first, self.first + (len(self.taps) - 1) * self.tap_step]
        return min(ends), max(ends) + (self.count - 1) * self.in_step


def axis_phases(spec: Conv2d, axis: int) -> list[Axis]:
    """An axis as one phase, or as one per output phase of a transposed convolution."""
    size, kernel, stride = spec.result.shape[2 + axis], spec.kernel[axis], spec.strides[axis]
    dilation, before = spec.dilation[axis], spec.padding[axis]
    if not spec.transposed:
        return [Axis(size, 1, 0, stride, -before, dilation, tuple(range(kernel)))]
    phases = []
    for offset in range(min(stride, size)):
        # output o = t * stride + offset meets tap k at input (o + before - k * dilation) / stride when that is whole
        taps = [k for k in range(kernel) if (offset + before - k * dilation) % stride == 0]
        first = (offset + before - taps[0] * dilation) // stride if taps else 0
        step = -(taps[1] - taps[0]) * dilation // stride if len(taps) > 1 else 0
        phases.append(Axis(-(-(size - offset) // stride), stride, offset, 1, first, step, tuple(taps)))
    return phases


@dataclass(frozen=True)
class Reduction:
    """The input channels one block of 16 output channels needs, in steps of `unit` channels."""

    unit: int  # channels per step
    per_block: int  # steps per channel block of the data
    length: int  # steps per output-channel block and tap
    starts: tuple[int, ...]  # first step, per output-channel block

    @property
    def whole_blocks(self) -> bool:
        return self.length % self.per_block == 0 and all(s % self.per_block == 0 for s in self.starts)

    @property
    def inner(self) -> int:
        """Steps of the innermost loop, which can be written out."""
        return self.per_block if self.whole_blocks else 1

    @staticmethod
    def of(spec: Conv2d, unit: int) -> Reduction:
        data = spec.inputs[0]
        per_block = data.block // unit
        channels, out_channels = data.shape[1], spec.result.shape[1]
        total = data.channel_blocks * per_block
        if spec.groups == 1:
            length = -(-channels // unit) if data.channel_blocks == 1 else total
            return Reduction(unit, min(per_block, length), length, (0,) * spec.result.channel_blocks)
        in_group, out_group = channels // spec.groups, out_channels // spec.groups
        ranges = []
        for block in range(spec.result.channel_blocks):
            last = min(block * LANES + LANES, out_channels) - 1
            low, high = block * LANES // out_group * in_group, (last // out_group + 1) * in_group
            ranges.append((low // unit, -(-high // unit)))
        length = max(high - low for low, high in ranges)
        return Reduction(unit, per_block, length, tuple(min(low, total - length) for low, _ in ranges))


@dataclass(frozen=True)
class Geometry:
    """Phases (rows, columns), padding (top, left, bottom, right) and the size of the map they read."""

    phases: tuple[tuple[Axis, Axis], ...]
    pads: tuple[int, int, int, int]
    height: int
    width: int

    @staticmethod
    def of(spec: Conv2d, flat: bool = False) -> Geometry:
        """With `flat`, which needs `can_be_flat`, all rows of a map are one."""
        _, _, height, width = spec.inputs[0].shape
        if flat:
            row = Axis(height * width, 1, 0, 1, 0, 1, (0,))
            return Geometry(((Axis(1, 1, 0, 1, 0, 1, (0,)), row),), (0, 0, 0, 0), 1, height * width)
        rows, columns = axis_phases(spec, 0), axis_phases(spec, 1)
        (top, bottom), (left, right) = _pads(rows, height), _pads(columns, width)
        return Geometry(tuple((y, x) for y in rows for x in columns), (top, left, bottom, right), height, width)

    @property
    def columns(self) -> int:
        """The longest output row of a phase."""
        return max(x.count for _, x in self.phases)


def can_be_flat(spec: Conv2d) -> bool:
    """A 1x1 convolution of stride 1, a product of matrices, may see one long row of pixels."""
    g = Geometry.of(spec)
    y, x = g.phases[0]
    pointwise = len(g.phases) == 1 and len(y.taps) == len(x.taps) == 1
    in_place = y.in_step == x.in_step == 1 and not any(g.pads)
    return pointwise and in_place and (g.height, g.width) == spec.result.shape[2:]


def _pads(phases: list[Axis], size: int) -> tuple[int, int]:
    reads = [axis.reads() for axis in phases]
    return max(0, -min(r[0] for r in reads)), max(0, max(r[1] for r in reads) - (size - 1))

"""Nearest and bilinear resizing, from tables computed when compiling.

Algorithm: linear blends two rows, then two columns, as low + weight * (high - low); nearest picks.  Then the program.

Schedule: sixteen channels of a pixel are a vector; rows of all planes are shared out to the threads.  Linear keeps the
blend of two input rows in a buffer one row long, so columns cost two loads and one fma per output.  Nearest by whole
factors without a program reads every pixel once and writes it into all its places; doubled bytes four pixels at a time.
A plain result, the scores a segmentation network returns, is transposed in registers, sixteen pixels at a time: written
packed and converted by a kernel of its own it is the network's largest tensor three times over.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Kernel, Output, Resize2d, Spec

from .cpu import Cpu
from .epilogue import Epilogue
from .lanes import elements, first_lanes, saturated, shuffle, store_masked, tasks, transpose
from .rule import Constants, Rule
from .vector import KernelBuilder, fma, let, load, real, scratch, store, when


class Resize2dRule(Rule):
    """Delivers every `Resize2d` of NCHW16c tensors, the result plain float32 where nothing else is read."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Resizing in blocks of sixteen."""
        if not isinstance(spec, Resize2d) or any(t.block != LANES for t in spec.inputs):
            return False
        return spec.result.block == LANES or (not spec.result.block and spec.can_be_plain)

    def build(self, spec: Resize2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        return _Resize(spec, constants, cpu).kernel()


def _factor(table) -> int:
    """The whole factor by which a nearest table repeats its input, 0 if there is none."""
    source = [entry[0] for entry in table]
    factor = max(1, len(source) // (source[-1] + 1))
    return factor if source == [i // factor for i in range(len(source))] else 0


class _Resize:
    def __init__(self, spec: Resize2d, constants: Constants, cpu: Cpu):
        self.spec, self.cpu = spec, cpu
        self.data = spec.inputs[0]
        self.epilogue = Epilogue(spec, constants)
        _, _, self.rows, self.cols = spec.result.shape
        self.factors = (_factor(spec.rows), _factor(spec.cols))

    @property
    def copies(self) -> bool:
        """Whether the output holds the input's very values."""
        unchanged = saturated(Output(self.data.dtype, self.spec.zero_point))
        nearest = self.spec.method == "nearest"
        return nearest and not self.spec.program.steps and saturated(self.spec.output) == unchanged

    @property
    def repeats(self) -> bool:
        """Whether whole factors repeat every pixel of the input."""
        height, width = self.data.shape[2:]
        return (
            self.copies
            and self.spec.result.block == LANES
            and all(self.factors)
            and (self.rows, self.cols)
            == (
                height * self.factors[0],
                width * self.factors[1],
            )
        )

    def kernel(self) -> Kernel:
        """Declare the arguments and emit the loops."""
        both = (self.spec.rows, self.spec.cols)
        tables = [np.array([entry[i] for entry in table], np.int32) for table in both for i in (0, 1)]
        weights = [np.array([entry[2] for entry in table], np.float32) for table in both]
        packed = [*self.epilogue.channel_arrays(), *tables, *weights]
        operands, channels = self.epilogue.tensor_parameters(), self.epilogue.channel_parameters()
        parameters = [("data", self.data.physical_shape, self.data.dtype), *operands, *channels]
        parameters += [(f"table{i}", t.shape, str(t.dtype)) for i, t in enumerate((*tables, *weights))]
        with KernelBuilder("resize2d") as k:
            result = ("out", self.spec.result.physical_shape, self.spec.result.dtype)
            source, *rest, out = k.arguments(*parameters, result)
            first, second = len(operands), len(operands) + len(channels)
            self.epilogue.bind(rest[:first], rest[first:second])
            if self.repeats:
                self._repeat(source, out)
            else:
                self._pick(source, rest[second:], out)
        return Kernel(k.func, tuple(packed), f"resize2d_{self.spec.method}")

    def _repeat(self, source, out) -> None:
        height, width = self.data.shape[2:]
        down, right = self.factors
        step = 4 if self.data.dtype != "float32" and right == 2 else 1

        def group(row, x, count):
            vector = let(load(source, (row * width + x) * LANES, count * LANES))
            pixels = [vector] * right
            if count == 4:  # pixels 0011 and 2233
                words = [
                    shuffle([T.reinterpret("int64x8", vector)], [2 * (first + i // 4) + i % 2 for i in range(8)])
                    for first in (0, 2)
                ]
                pixels = [let(T.reinterpret(f"{self.data.dtype}x64", word)) for word in words]
            for y in range(down):
                target = ((row * down + y) * width + x) * right
                for i, pixel in enumerate(pixels):
                    store(out, (target + i * count) * LANES, pixel, count * LANES)

        planes = self.spec.result.shape[0] * self.spec.result.channel_blocks
        with tasks(planes, height, elements(self.spec), self.cpu) as task, T.serial(task.count) as y:
            row = let(task.plane * height + task.begin + y)
            with T.serial(width // step) as x:
                group(row, x * step, step)
            for x in range(width - width % step, width):
                group(row, x, 1)

    def _pick(self, source, tables, out) -> None:
        height, width = self.data.shape[2:]
        blocks = self.data.channel_blocks
        lows, highs, left, right, row_weights, col_weights = tables
        columns = (left, right, col_weights)
        planes = self.spec.result.shape[0] * blocks
        with tasks(planes, self.rows, elements(self.spec), self.cpu) as task:
            n, block = let(task.plane // blocks), let(task.plane % blocks)
            fixed = self.epilogue.per_channel(n, block)
            blended = scratch(width * LANES, "float32") if self.spec.method == "linear" else None
            with T.serial(task.count) as i:
                y = let(task.begin + i)
                low = let((task.plane * height + load(lows, y, 1)) * width)
                if blended is not None:
                    high = let((task.plane * height + load(highs, y, 1)) * width)
                    weight = let(T.broadcast(load(row_weights, y, 1), LANES))
                    with T.serial(width) as x:
                        top, bottom = (let(self._real(source, (row + x) * LANES)) for row in (low, high))
                        store(blended, x * LANES, fma(weight, bottom - top, top))
                value = partial(self._value, source, low, blended, columns)
                if self.spec.result.block:
                    self._packed_row(source, out, (task.plane, n, y), fixed, low, columns[0], value)
                else:
                    self._plain_row(out, (n, block, y), lambda x, of=value: self.epilogue.emit(fixed, 0, 0, of(x)))

    def _packed_row(self, source, out, place, fixed, low, left, value) -> None:
        """Write row y of a plane, pixel after pixel; place is (plane, n, y)."""
        plane, n, y = place
        with T.serial(self.cols) as x:
            target = let((plane * self.rows + y) * self.cols + x) * LANES
            if self.copies:
                store(out, target, load(source, (low + load(left, x, 1)) * LANES))
            else:
                pixel = (n * self.rows + y) * self.cols + x
                store(out, target, self.epilogue.emit(fixed, target, pixel, value(x)))

    def _plain_row(self, out, place, value) -> None:
        """Write row y of a block's channels, `value(x)` being the channels of a pixel; place is (n, block, y)."""
        n, block, y = place
        channels = self.spec.result.shape[1]
        whole = channels % LANES or LANES  # channels that every block has

        def tile(first, count, mask):
            rows = transpose([let(value(first + min(i, count - 1))) for i in range(LANES)])

            def write(lanes):
                for lane in lanes:
                    row = ((n * channels + block * LANES + lane) * self.rows + y) * self.cols + first
                    if mask is None:
                        store(out, row, rows[lane])
                    else:
                        store_masked(out, row, rows[lane], mask)

            write(range(whole))
            if whole < LANES:
                with when(block < self.data.channel_blocks - 1):
                    write(range(whole, LANES))

        if self.cols >= LANES:
            with T.serial(self.cols // LANES) as index:
                tile(index * LANES, LANES, None)
        if left := self.cols % LANES:
            tile(self.cols - left, left, first_lanes(left))

    def _value(self, source, low, blended, columns, x):
        """The accumulator of output column `x`."""
        left, rights, weights = columns
        if blended is None:
            return let(self._real(source, (low + load(left, x, 1)) * LANES))
        weight = T.broadcast(load(weights, x, 1), LANES)
        first, second = (let(load(blended, load(table, x, 1) * LANES)) for table in (left, rights))
        return let(fma(weight, second - first, first))

    def _real(self, source, index):
        return real(load(source, index), self.data.dtype, self.spec.zero_point)

"""Max and average pooling in NCHW16c, uint8 and float32.

Algorithm
    Separable.  A *line* is one output row reduced vertically over the kernel's rows, as wide as the padded input; the
    window's result is that line reduced horizontally.  Maxima of bytes are taken as bytes; sums of bytes are int16 as
    long as a window cannot exceed them, then int32.  Outside of the tensor a line holds what cannot win a maximum, or
    the zero point, so that every sum contains kernel * zero_point to be taken away.  Pooling over the whole map is one
    long reduction instead (`pool2d_global`).

Schedule
    Tasks are rows of one channel block; the line is scratch memory in L1 and the only copy made.  The vertical pass
    runs over whole rows, four pixels (64 bytes) a vector where bytes stay bytes.  Horizontally, a maximum without a
    program also works on four pixels: for stride 1 the line shifted pixel by pixel, for stride 2 every second pixel of
    two such vectors.  Everything else is a vector of 16 channels per pixel.

    Not done: running sums over kernel columns; they would pay for windows larger than any network's, whole maps aside.

Evidence
    AMD Zen 5 at about 3.7 GHz, one thread, November 2026, us (GB/s of input and output): u8 max 3x3 stride 2 of 64 x
    112x112 10 (100), of 192 x 56x56 7.2 (105); u8 avg 3x3 stride 1 of 192 x 28x28 11 (27: a program per pixel), 7x7 map
    of 2048 0.9 (110).  float32: 40 (100), 28 (107), 12 (104), 3.1 (130).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.reference.pool2d import reciprocals
from tvm_int8.specs import LANES, Kernel, Pool2d

from .cpu import Cpu
from .epilogue import Epilogue
from .lanes import elements, tasks
from .pool2d_global import Register, emit_global, is_global
from .rule import Constants, Rule
from .shuffle import PIXELS, each_pixel, every_second_pixel
from .vector import KernelBuilder, const, convert, f32, fenced, let, load, maximum, real, scratch, store

UNROLL = 16  # larger windows are loops


def byte_range(spec: Pool2d) -> tuple[int, int] | None:
    """[low, high] to which maxima of bytes are clamped to be the output's very bytes; None where a program must run.

    That is so for a program without steps whose only operand is the accumulator, uint8 in and out with the same zero
    point: rounding is monotone, so clamping before or after it is the same.
    """
    program, output = spec.program, spec.output
    if (spec.mode, spec.inputs[0].dtype, output.dtype) != ("max", "uint8", "uint8"):
        return None
    if output.zero_point != spec.zero_point:
        return None
    if program.steps or [operand.kind for operand in program.operands] != ["acc"]:
        return None
    low, high = (max(-256.0, min(256.0, end)) for end in (output.low, output.high))
    low, high = (int(np.rint(np.float32(end))) + output.zero_point for end in (low, high))
    return (max(low, 0), min(high, 255)) if low <= 255 and high >= 0 else None


class Pool2dRule(Rule):
    """Any `Pool2d` over NCHW16c, uint8 or float32."""

    def applies(self, spec, cpu: Cpu) -> bool:
        """Whether `spec` is such a pooling."""
        if not isinstance(spec, Pool2d):
            return False
        data = spec.inputs[0]
        return data.dtype in ("uint8", "float32") and data.block == spec.result.block == LANES

    def build(self, spec: Pool2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; there are no knobs."""
        return Pooling(spec, constants, cpu).build()


@dataclass(frozen=True)
class Reduce:
    """How elements of one kind are reduced: dtype of a line, start value, the operation, pixels per vector."""

    dtype: str
    start: float  # of the vertical reduction and of the line outside of the tensor
    pixels: int
    maximum: bool

    def __call__(self, a, b):
        """Reduce two vectors."""
        return maximum(a, b) if self.maximum else a + b


def _reduce_of(spec: Pool2d) -> Reduce:
    integer, (kh, kw) = spec.inputs[0].dtype == "uint8", spec.kernel
    if spec.mode == "max":
        return Reduce("uint8", 0, PIXELS, True) if integer else Reduce("float32", -math.inf, 1, True)
    if not integer:
        return Reduce("float32", 0, 1, False)
    return Reduce("int16", 0, 2, False) if kh * kw * 255 < 1 << 15 else Reduce("int32", 0, 1, False)


class Pooling:
    """Builds the kernel of one spec."""

    def __init__(self, spec: Pool2d, constants: Constants, cpu: Cpu):
        self.spec, self.cpu = spec, cpu
        self.epilogue = Epilogue(spec, constants)
        self.reduce, self.bytes = _reduce_of(spec), byte_range(spec)
        self.integer = spec.inputs[0].dtype == "uint8"
        _, _, self.height, self.width = spec.inputs[0].shape
        _, _, self.out_height, self.out_width = spec.result.shape
        self.span = tuple((k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True))
        self.line_width = (self.out_width - 1) * spec.strides[1] + self.span[1]
        table = reciprocals(spec)
        self.reciprocal = float(table.flat[0]) if (table == table.flat[0]).all() else table

    def build(self) -> Kernel:
        """The kernel and its constants: a table of reciprocals where counts differ, then channel operands."""
        spec, epilogue = self.spec, self.epilogue
        table = [] if spec.mode == "max" or isinstance(self.reciprocal, float) else [self.reciprocal]
        tensors, channels = epilogue.tensor_parameters(), epilogue.channel_parameters()
        with KernelBuilder(self.name()) as k:
            self.data, *rest = k.arguments(
                ("data", spec.inputs[0].physical_shape, spec.inputs[0].dtype),
                *tensors,
                *(("reciprocal", array.shape, "float32") for array in table),
                *channels,
                ("out", spec.result.physical_shape, spec.result.dtype),
            )
            self.out, split = rest.pop(), len(tensors) + len(table)
            self.table = rest[len(tensors)] if table else None
            epilogue.bind(rest[: len(tensors)], rest[split:])
            if is_global(spec):
                emit_global(self)
            else:
                self._emit()
        return Kernel(k.func, (*table, *epilogue.channel_arrays()), k.name)

    def name(self) -> str:
        """pool2d_<mode>_<dtype>_<window>."""
        spec, ((kh, kw), (sh, sw)) = self.spec, (self.spec.kernel, self.spec.strides)
        window = "global" if is_global(spec) else f"{kh}x{kw}_s{sh}x{sw}"
        return f"{spec.mode}_pool2d_{'u8' if self.integer else 'f32'}_{window}"

    def _emit(self) -> None:
        spec, blocks = self.spec, self.spec.result.channel_blocks
        with tasks(spec.result.shape[0] * blocks, self.out_height, elements(spec), self.cpu) as task:
            self.line = scratch((self.line_width + 2 * PIXELS) * LANES, self.reduce.dtype)
            left = min(spec.padding[1], self.line_width)
            copied = max(0, min(self.width, self.line_width - left))
            self._fill_line(0, left)
            self._fill_line(left + copied, self.line_width - left - copied)
            image, block = task.plane // blocks, task.plane % blocks
            per_channel = self.epilogue.per_channel(image, block)
            with T.serial(task.count) as i:
                y = let(task.begin + i)
                self._vertical(task.plane, y, left, copied)
                if self.bytes:
                    self._horizontal_bytes((task.plane * self.out_height + y) * self.out_width)
                else:
                    self._horizontal(image, block, y, per_channel)

    def _fill_line(self, start: int, count: int) -> None:
        """What the line holds outside of the tensor."""
        value = self.reduce.start
        if self.integer and self.spec.mode == "avg":
            value = self.spec.zero_point * self.spec.kernel[0]
        if count > 0:
            with T.serial(count) as i:
                store(self.line, (start + i) * LANES, const(value, self.reduce.dtype))

    # The vertical pass

    def _vertical(self, plane, y, left: int, copied: int) -> None:
        """Reduce the rows under output row y into the line."""
        (kh, _), (sh, _), (dh, _) = self.spec.kernel, self.spec.strides, self.spec.dilation
        top = let(y * sh - self.spec.padding[0])
        inside = self.spec.padding[0] == 0 and (self.out_height - 1) * sh + self.span[0] <= self.height

        def columns(emit):
            each_pixel(copied, self.reduce.pixels, emit)

        def whole(x, lanes):
            value = self._load(plane, top, x, lanes)
            for k in range(1, kh):
                value = self.reduce(value, self._load(plane, top + k * dh, x, lanes))
            store(self.line, (left + x) * LANES, value, lanes)

        def partial(x, lanes):
            first = let(T.max(0, (dh - 1 - top) // dh))
            last = let(T.min(kh, (self.height - top + dh - 1) // dh))
            rows = let(T.max(0, last - first))
            start = const(self.reduce.start, self.reduce.dtype, lanes)
            if self.integer and self.spec.mode == "avg" and self.spec.zero_point:
                missing = T.cast((kh - rows) * self.spec.zero_point, self.reduce.dtype)
                start = T.broadcast(missing, lanes)
            value = Register(lanes, self.reduce.dtype, start)
            with T.serial(rows) as k:
                value.set(self.reduce(value.get(), self._load(plane, top + (first + k) * dh, x, lanes)))
            store(self.line, (left + x) * LANES, value.get(), lanes)

        if kh > UNROLL:
            columns(partial)
        elif inside:
            columns(whole)
        else:
            with T.If(T.And(top >= 0, top + self.span[0] <= self.height)):
                with T.Then():
                    columns(whole)
                with T.Else():
                    columns(partial)

    def _load(self, plane, row, x, lanes: int):
        value = load(self.data, ((plane * self.height + row) * self.width + x) * LANES, lanes)
        return value if self.reduce.dtype == self.spec.inputs[0].dtype else convert(value, self.reduce.dtype, lanes)

    # The horizontal pass

    def _horizontal_bytes(self, out_pixel) -> None:
        """Maxima of bytes, straight to the output."""
        stride = self.spec.strides[1]
        low, high = self.bytes

        def put(x, value, lanes):
            if low > 0:
                value = maximum(value, const(low, "uint8", lanes))
            if high < 255:
                value = T.min(value, const(high, "uint8", lanes))
            store(self.out, (out_pixel + x) * LANES, value, lanes)

        if stride > 2 or self.out_width < PIXELS:
            with T.serial(self.out_width) as x:
                put(x, self._window(x * stride, LANES), LANES)
            return
        with T.serial(-(-self.out_width // PIXELS)) as i:
            x = let(T.min(i * PIXELS, self.out_width - PIXELS))
            value = let(self._window(x * stride, PIXELS * LANES))
            if stride == 2:
                behind = let(self._window(x * stride + PIXELS, PIXELS * LANES))
                value = every_second_pixel(value, behind, 0)
            put(x, value, PIXELS * LANES)

    def _window(self, pixel, lanes: int):
        """The line reduced over the kernel's columns, from `pixel`; a vector of `lanes` elements."""
        kw, dw = self.spec.kernel[1], self.spec.dilation[1]
        if kw <= UNROLL:
            value = load(self.line, pixel * LANES, lanes)
            for k in range(1, kw):
                value = self.reduce(value, load(self.line, (pixel + k * dw) * LANES, lanes))
            return value
        register = Register(lanes, self.reduce.dtype, load(self.line, pixel * LANES, lanes))
        with T.serial(kw - 1) as k:
            register.set(self.reduce(register.get(), load(self.line, (pixel + (k + 1) * dw) * LANES, lanes)))
        return register.get()

    def _horizontal(self, image, block, y, per_channel) -> None:
        """Any program, a pixel at a time."""
        count = math.prod(self.spec.kernel)
        with T.serial(self.out_width) as x:
            value = let(self._window(x * self.spec.strides[1], LANES))
            self.finish(image, block, y * self.out_width + x, per_channel, value, self.reduce.dtype, count)

    def finish(self, image, block, pixel, per_channel, value, dtype: str, count: int) -> None:
        """Program and store of one pixel; `value` is the reduction of `count` elements, of `dtype`."""
        area, spec = self.out_height * self.out_width, self.spec
        if spec.mode == "max":
            value = real(value, dtype, spec.zero_point)
        else:
            value = real(value, dtype, spec.zero_point * count)
            scale = f32(self.reciprocal) if self.table is None else T.broadcast(load(self.table, pixel, 1), LANES)
            value = fenced(value * scale)
        index = ((image * spec.result.channel_blocks + block) * area + pixel) * LANES
        store(self.out, index, self.epilogue.emit(per_channel, index, image * area + pixel, let(value)))

"""Depthwise convolution with four taps per `vpdpbusd`; how is told in `depthwise_conv2d`."""

from __future__ import annotations

from functools import partial

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Output

from .cpu import Cpu
from .depthwise_body import Body, pad_channels_last
from .programs import run_programs
from .rule import Constants
from .shuffle import PIXELS, every_second_pixel, pack_int16, pack_uint8, shuffle, transpose_lanes, unpack
from .vector import const, convert, f32, intrinsic, let, load, maximum, minimum, real, store, to_int32

MAX_UNROLLED_TAPS = 121  # larger kernels take the plain body, whose code does not grow with the kernel


def can_interleave(spec: Conv2d, cpu: Cpu) -> bool:
    """Whether the four-taps-at-once body can compute `spec`."""
    kh, kw = spec.kernel
    data = spec.inputs[0].dtype == "uint8" and cpu.dot == "avx512vnni"
    return data and spec.strides[1] <= 2 and kh * kw <= MAX_UNROLLED_TAPS


def finishes_interleaved(spec: Conv2d) -> bool:
    """Whether the epilogue too can stay interleaved: saturating u8 output, operands that unpack cheaply."""
    output = spec.output
    saturates = output.dtype == "uint8" and output.low >= -output.zero_point and output.high <= 255 - output.zero_point
    kinds = {(o.kind, o.dtype if o.kind == "tensor" else "any") for o in spec.program.operands}
    simple = kinds <= {("acc", "any"), ("channel", "any"), ("vector", "any"), ("tensor", "uint8")}
    return saturates and simple and spec.result.shape[3] >= PIXELS


class Interleaved(Body):
    """Four pixels x 16 channels x up to four taps of a kernel row per group of four `vpdpbusd`."""

    form = "u8s8_avx512vnni"

    def __init__(self, spec: Conv2d, constants: Constants, knobs: dict):
        super().__init__(spec, constants, knobs)
        self.groups = -(-spec.kernel[1] // 4)
        self.interleaved_epilogue = finishes_interleaved(spec)

    def packed_weight(self, weight: np.ndarray) -> np.ndarray:
        """[CB, KH, groups of 4 taps, 4 accumulators, 4 pixels (repeated), 4 channels, 4 taps] int8."""
        kh, kw = self.spec.kernel
        weight = pad_channels_last(weight.reshape(-1, kh * kw).T).T
        weight = np.pad(weight.reshape(-1, kh, kw), ((0, 0), (0, 0), (0, -kw % 4)))
        weight = weight.reshape(-1, 4, 4, kh, self.groups, 4).transpose(0, 3, 4, 1, 2, 5)
        return np.ascontiguousarray(np.repeat(weight[..., None, :, :], PIXELS, axis=4), np.int8)

    def per_channel_arrays(self) -> list[np.ndarray]:
        """Bias, and with an interleaved epilogue channel operands too, arranged like the accumulators."""
        bias, *channels = super().per_channel_arrays()
        return [_spread(bias), *(map(_spread, channels) if self.interleaved_epilogue else channels)]

    def emit_rows(self, image, block, first, rows) -> None:
        """Output rows first .. first + rows of one channel block."""
        block_rows, width = self.knobs["rows"], self.geometry.out_width
        row_tiles, row_start = self.tiles(rows, block_rows)
        columns, column_start = (1, lambda i: 0) if width < PIXELS else self.tiles(width, PIXELS)
        if self.interleaved_epilogue:
            finish = _SpreadEpilogue(self, image, block).emit
        else:
            finish = partial(self._finish_by_pixel, self.epilogue.per_channel(image, block), image, block)
        with T.serial(row_tiles) as tile_y:
            y = row_start(tile_y)
            with T.serial(columns) as tile_x:
                self._emit_block(block, first, y, column_start(tile_x), finish)

    def _emit_block(self, block, first, y, x, finish) -> None:
        """`rows` output rows from y (counted from the task's first) x four pixels from x."""
        g, kh = self.geometry, self.spec.kernel[0]
        accs: dict[int, list] = {}
        top = let(y * self.spec.strides[0])
        for row, readers in enumerate(g.interleavings(self.knobs["rows"])):
            if not readers:
                continue
            words = self._interleave(((top + row) * g.pitch + g.row_start + x * self.spec.strides[1]) * LANES)
            for out_row, i in readers:
                if i == 0:
                    accs[out_row] = [load(self.bias, (block * 4 + j) * LANES) for j in range(4)]
                for group in range(self.groups):
                    for j in range(4):
                        index = (((block * kh + i) * self.groups + group) * 4 + j) * 64
                        weight = load(self.weight, index, 64)
                        dot = intrinsic(
                            "int32x16", "llvm.x86.avx512.vpdpbusd.512", accs[out_row][j], words[group][j], weight
                        )
                        accs[out_row][j] = let(dot)
                if i == kh - 1:
                    finish(first + y + out_row, x, accs.pop(out_row))

    def _interleave(self, address) -> list[list]:
        """Per group of four taps: four vectors, vector j with the taps of channels 4j..4j+3 of four pixels."""
        taps = self._taps(address)
        result = []
        for group in range(self.groups):
            members = taps[group * 4 : group * 4 + 4]
            pairs = [(members[i], members[min(i + 1, len(members) - 1)]) for i in range(0, len(members), 2)]
            words = []
            for high in (False, True):
                halves = [unpack(a, b, 1, high) for a, b in pairs]
                words += [unpack(halves[0], halves[-1], 2, False), unpack(halves[0], halves[-1], 2, True)]
            result.append(words)
        return result

    def _taps(self, address) -> list:
        """The four pixels every tap of one kernel row sees."""
        (_, kw), (_, sw), (_, dw) = self.spec.kernel, self.spec.strides, self.spec.dilation
        if sw == 1:
            return [let(load(self.padded, address + j * dw * LANES, 64)) for j in range(kw)]
        loaded: dict[int, object] = {}

        def at(pixel: int):
            if pixel not in loaded:
                loaded[pixel] = let(load(self.padded, address + pixel * LANES, 64))
            return loaded[pixel]

        even = [(j * dw // 2 * 2, j * dw % 2) for j in range(kw)]
        return [every_second_pixel(at(pixel), at(pixel + PIXELS), odd) for pixel, odd in even]

    def _finish_by_pixel(self, per_channel, image, block, y, x, accs) -> None:
        """Any program: accumulators rearranged to one pixel of 16 channels each."""
        for p, acc in enumerate(transpose_lanes(accs)[: self.geometry.out_width]):
            index, pixel = self.out_index(image, block, y, x + p)
            value = let(convert(acc, "float32"))
            store(self.out, index, self.epilogue.emit(per_channel, index, pixel, value))


def _spread(array: np.ndarray) -> np.ndarray:
    """[CB * 16] -> [CB, 4 accumulators, 4 pixels (repeated), 4 channels]."""
    return np.ascontiguousarray(np.repeat(array.reshape(-1, 4, 1, 4), PIXELS, axis=2))


class _SpreadEpilogue:
    """A program over interleaved accumulators: vector j holds channels 4j..4j+3 of four pixels."""

    def __init__(self, body: Interleaved, image, block):
        self.body, self.spec, self.image, self.block = body, body.spec, image, block
        channels, tensors = iter(body.channels), iter(body.tensors)
        self.operands = []
        for operand in self.spec.program.operands:
            buffer = None
            if operand.kind != "acc":
                buffer = next(channels) if operand.kind == "channel" else next(tensors)
            self.operands.append((operand, buffer))

    def emit(self, y, x, accs) -> None:
        """Four pixels from (y, x), 64 bytes."""
        index, _ = self.body.out_index(self.image, self.block, y, x)
        columns = [self._values(operand, buffer, index, accs) for operand, buffer in self.operands]
        results = run_programs(self.spec.program, list(zip(*columns, strict=True)))
        store(self.body.out, index, _narrow(results, self.spec.output), 64)

    def _values(self, operand, buffer, index, accs) -> list:
        """One float32 vector per accumulator."""
        if operand.kind == "acc":
            return [let(convert(acc, "float32")) for acc in accs]
        if operand.kind == "channel":
            return [load(buffer, (self.block * 4 + j) * LANES) for j in range(4)]
        if operand.kind == "vector":
            plane = self.image * self.spec.result.channel_blocks + self.block
            value = let(real(load(buffer, plane * LANES), operand.dtype, operand.zero_point))
            return [shuffle([value], list(range(4 * j, 4 * j + 4)) * PIXELS) for j in range(4)]
        data, zero = let(load(buffer, index, 64)), const(0, "uint8", 64)
        halves = [unpack(data, zero, 1, high) for high in (False, True)]
        words = [unpack(half, zero, 2, high) for half in halves for high in (False, True)]
        return [let(real(T.reinterpret("int32x16", v), "int32", operand.zero_point)) for v in words]


def _narrow(values: list, output: Output):
    """Four float32 vectors to 64 saturated bytes (`arithmetic.store`); saturation replaces a lower clamp at 0."""
    clamped = []
    for value in values:
        if output.low > -output.zero_point:
            value = maximum(value, f32(np.float32(output.low)))
        clamped.append(to_int32(minimum(value, f32(np.float32(output.high)))))
    halves = [pack_int16(*clamped[:2]), pack_int16(*clamped[2:])]
    if output.zero_point:
        halves = [half + const(output.zero_point, "int16", 32) for half in halves]
    return pack_uint8(*halves)

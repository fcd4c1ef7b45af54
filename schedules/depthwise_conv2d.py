"""Depthwise convolution in NCHW16c, u8 x s8 -> s32 on VNNI and float32 on FMA.

Algorithm
    out[n, c, y, x] = bias[c] + sum over i, j of data[n, c, y * sh + i * dh - top, x * sw + j * dw - left] * weight[c, i, j]

Schedule
    One task is some rows of one channel block.  It copies the rows it needs, with their padding, into scratch memory that
    stays in L1, so nothing behind that tests for borders.  Then one of two bodies:

    *interleaved* (VNNI, horizontal stride 1 or 2): four pixels x 16 channels are one 64-byte vector, and so is every tap of them:
    the row itself shifted by a pixel, or every second pixel of two vectors.  Four taps of a kernel row, interleaved byte by byte
    (eight `vpunpck`), are what one `vpdpbusd` multiplies: accumulator j of 4 holds channels 4j..4j+3 of the four pixels,
    one pixel a 16-byte lane.  An interleaved input row serves all kernel rows, so R output rows are computed
    together: (R * sh + KH - sh) interleavings and 4 * R * KH `vpdpbusd` for 64 * R outputs of a kernel not wider than four.
    Missing taps are any data times zero.  The epilogue runs in that arrangement (its constants are packed alike), and `vpackssdw`,
    `vpackuswb` restore the channels' order for free while narrowing.

    *plain* (everything else): 16 channels of a pixel are one vector, a few pixels a tile, widened multiplies.

Evidence
    See `EVIDENCE` at the end of the tests' module for the command; figures of one machine are in the docstring of `knobs_for`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel, Output

from .cpu import Cpu
from .epilogue import Epilogue
from .rule import Constants, Rule, pad_channels
from .shuffle import PIXELS, every_second_pixel, pack_int16, pack_uint8, shuffle, transpose_lanes, unpack
from .vector import (
    KernelBuilder,
    const,
    convert,
    f32,
    fma,
    intrinsic,
    let,
    load,
    maximum,
    minimum,
    real,
    registers,
    run_program,
    scratch,
    store,
    to_int32,
)

MAX_UNROLLED_TAPS = 121  # larger kernels take the plain body, whose code does not grow with the kernel
SLACK = 2 * PIXELS  # pixels a vector may read behind the last row


@dataclass(frozen=True)
class Geometry:
    """Sizes of a depthwise convolution, derived once."""

    spec: Conv2d

    @property
    def out_height(self) -> int:
        return self.spec.result.shape[2]

    @property
    def out_width(self) -> int:
        return self.spec.result.shape[3]

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns one output's window covers."""
        (kh, kw), (dh, dw) = self.spec.kernel, self.spec.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def padded_width(self) -> int:
        return (self.out_width - 1) * self.spec.strides[1] + self.span[1]

    @property
    def row_start(self) -> int:
        """Pixels left free in front of a padded row, so that what is copied starts at a multiple of 64 bytes."""
        return -self.spec.padding[1] % PIXELS

    @property
    def pitch(self) -> int:
        """Pixels from one padded row to the next, a multiple of 64 bytes."""
        return -(-(self.row_start + self.padded_width) // PIXELS) * PIXELS

    def rows_in(self, rows_out):
        """Input rows that `rows_out` output rows need (an int or an expression)."""
        return (rows_out - 1) * self.spec.strides[0] + self.span[0]

    def interleavings(self, rows_out: int) -> list[list[tuple[int, int]]]:
        """Per input row of a block of output rows: the (output row, kernel row) pairs that read it."""
        (kh, _), (sh, _), (dh, _) = self.spec.kernel, self.spec.strides, self.spec.dilation
        readers: list[list[tuple[int, int]]] = [[] for _ in range(self.rows_in(rows_out))]
        for y in range(rows_out):
            for i in range(kh):
                readers[y * sh + i * dh].append((y, i))
        return readers


def uses_interleaved(spec: Conv2d, cpu: Cpu) -> bool:
    """Whether the four-taps-at-once body can compute `spec`."""
    kh, kw = spec.kernel
    data = spec.inputs[0].dtype == "uint8" and cpu.dot == "avx512vnni"
    return data and spec.strides[1] <= 2 and kh * kw <= MAX_UNROLLED_TAPS


def runs_interleaved(spec: Conv2d) -> bool:
    """Whether the epilogue too can run on interleaved accumulators: u8 saturating output, operands that unpack cheaply."""
    output = spec.output
    saturates = output.dtype == "uint8" and output.low >= -output.zero_point and output.high <= 255 - output.zero_point
    simple = all(o.kind in ("acc", "channel", "vector") or (o.kind, o.dtype) == ("tensor", "uint8") for o in spec.program.operands)
    return saturates and simple and spec.result.shape[3] >= PIXELS


def knobs_for(spec: Conv2d, cpu: Cpu) -> dict:
    """chunks: tasks per channel block; rows: output rows computed together by the interleaved body.

    As few chunks as fit three quarters of L1 and leave each thread a few tasks; then the rows with the least work, which weighs
    interleavings (two shuffles a cycle) against recomputed rows where `rows` does not divide a chunk.
    """
    g = Geometry(spec)
    n, _, out_height, _ = spec.result.shape
    planes, row_bytes = n * spec.result.channel_blocks, g.pitch * LANES * np.dtype(spec.inputs[0].dtype).itemsize
    wanted = 1 if cpu.threads == 1 else 4 * cpu.threads
    chunks = 1
    while chunks < out_height and (
        g.rows_in(-(-out_height // chunks)) * row_bytes > cpu.l1_bytes * 3 // 4 or planes * chunks < wanted
    ):
        chunks += 1
    return {"chunks": chunks, "rows": _best_rows(g, out_height // chunks, -(-out_height // chunks))}


def _best_rows(g: Geometry, shortest: int, longest: int) -> int:
    kh, kw = g.spec.kernel
    dots = 4 * kh * -(-kw // 4)
    best, best_cost = 1, None
    for rows in range(1, min(shortest, 8) + 1):
        if rows > 1 and rows * (dots + 24) > 1000:
            break
        read = sum(bool(readers) for readers in g.interleavings(rows))
        cost = -(-longest // rows) * (read * (kw + 8 * -(-kw // 4)) + rows * (dots + 24))
        if best_cost is None or cost <= best_cost:
            best, best_cost = rows, cost
    return best


class DepthwiseConv2dRule(Rule):
    """Depthwise `Conv2d` specs of channel multiplier 1 over NCHW16c, uint8 or float32 data."""

    def applies(self, spec, cpu: Cpu) -> bool:
        if not isinstance(spec, Conv2d) or not spec.depthwise:
            return False
        data = spec.inputs[0]
        return data.dtype in ("uint8", "float32") and data.block == spec.result.block == LANES

    def build(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        builder = _Interleaved if uses_interleaved(spec, cpu) else _Plain
        return builder(spec, constants, knobs or knobs_for(spec, cpu)).build()


class _Body:
    """What both bodies share: parameters, tasks, the padded copy, the row and column tiles."""

    def __init__(self, spec: Conv2d, constants: Constants, knobs: dict):
        self.spec, self.constants = spec, constants
        self.geometry = Geometry(spec)
        chunks = min(knobs["chunks"], self.geometry.out_height)
        self.knobs = {"chunks": chunks, "rows": min(knobs["rows"], self.geometry.out_height // chunks)}
        self.integer = spec.inputs[0].dtype == "uint8"
        self.acc_dtype = "int32" if self.integer else "float32"
        self.epilogue = Epilogue(spec, constants)

    def per_channel_arrays(self) -> list[np.ndarray]:
        """Bias and channel operands, as the body reads them."""
        bias = self.constants.bias
        bias = np.zeros(self.spec.result.shape[1], self.acc_dtype) if bias is None else np.asarray(bias, self.acc_dtype)
        return [pad_channels(bias), *self.epilogue.channel_arrays()]

    def build(self) -> Kernel:
        weight, (bias, *channels) = self.packed_weight(), self.per_channel_arrays()
        tensors = self.epilogue.tensor_parameters()
        with KernelBuilder(self.name()) as k:
            self.data, *rest = k.arguments(
                ("data", self.spec.inputs[0].physical_shape, self.spec.inputs[0].dtype),
                *tensors,
                ("weight", weight.shape, str(weight.dtype)),
                ("bias", bias.shape, self.acc_dtype),
                *((f"channel{i}", array.shape, "float32") for i, array in enumerate(channels)),
                ("out", self.spec.result.physical_shape, self.spec.result.dtype),
            )
            self.tensors, rest = rest[: len(tensors)], rest[len(tensors) :]
            self.weight, self.bias, *self.channels, self.out = rest
            self.epilogue.bind(self.tensors, self.channels)
            self._emit()
        return Kernel(k.func, (weight, bias, *channels), k.name, self.knobs)

    def name(self) -> str:
        (kh, kw), (sh, sw) = self.spec.kernel, self.spec.strides
        return f"depthwise_conv2d_{self.form}_{kh}x{kw}_s{sh}x{sw}"

    def _emit(self) -> None:
        g, chunks, blocks = self.geometry, self.knobs["chunks"], self.spec.result.channel_blocks
        longest = -(-g.out_height // chunks)
        with T.parallel(self.spec.result.shape[0] * blocks * chunks) as task:
            plane, chunk = let(task // chunks), task % chunks
            first, rows = let(chunk * g.out_height // chunks), longest
            if g.out_height % chunks:
                rows = let((chunk + 1) * g.out_height // chunks - first)
            pixels = g.rows_in(longest) * g.pitch + SLACK
            self.padded = scratch(pixels * LANES, self.spec.inputs[0].dtype)
            self._copy_rows(plane, first, rows)
            self.emit_rows(plane // blocks, plane % blocks, first, rows)

    def _copy_rows(self, plane, first, rows) -> None:
        """Input rows of a task into `self.padded`, padding included."""
        g, (top, left, _, _) = self.geometry, self.spec.padding
        _, _, height, width = self.spec.inputs[0].shape
        copied = max(0, min(width, g.padded_width - left))
        with T.serial(g.rows_in(rows)) as row:
            source, base = let(first * self.spec.strides[0] + row - top), row * g.pitch + g.row_start
            with T.If(T.And(source >= 0, source < height)):
                with T.Then():
                    self._fill(base, min(left, g.padded_width))
                    from_pixel = (plane * height + source) * width
                    self._each(copied, lambda i, n: self._put(base + left + i, load(self.data, (from_pixel + i) * LANES, n), n))
                    self._fill(base + left + copied, g.padded_width - left - copied)
                with T.Else():
                    self._fill(base, g.padded_width)

    def _fill(self, pixel, count: int) -> None:
        value = lambda lanes: const(self.spec.pad_value, self.spec.inputs[0].dtype, lanes)  # noqa: E731
        self._each(count, lambda i, lanes: self._put(pixel + i, value(lanes), lanes))

    def _put(self, pixel, value, lanes: int) -> None:
        store(self.padded, pixel * LANES, value, lanes)

    @staticmethod
    def _each(count: int, emit) -> None:
        """emit(first pixel, lanes) over `count` pixels, four at a time, then one by one."""
        fours = max(count, 0) // PIXELS
        if fours:
            with T.serial(fours) as i:
                emit(i * PIXELS, PIXELS * LANES)
        for i in range(fours * PIXELS, count):
            emit(i, LANES)

    def tiles(self, total, size: int):
        """(number of tiles, first element of tile i): the last tile moves back so that it ends at `total`."""
        count = (total + size - 1) // size
        if isinstance(total, int) and total % size == 0:
            return count, lambda i: i * size
        return count, lambda i: let(T.min(i * size, total - size))

    def out_index(self, image, block, y, x):
        """(flat element index of the output, flat pixel of [N, H, W])."""
        g = self.geometry
        inside = y * g.out_width + x
        area = g.out_height * g.out_width
        return ((image * self.spec.result.channel_blocks + block) * area + inside) * LANES, image * area + inside


class _Plain(_Body):
    """Sixteen channels of one pixel a vector, a tile of pixels in registers."""

    @property
    def form(self) -> str:
        return "u8s8" if self.integer else "f32"

    def packed_weight(self) -> np.ndarray:
        """[CB, KH, KW, 16], int16 (LLVM then multiplies with one `vpmaddwd`) or float32."""
        kh, kw = self.spec.kernel
        weight = self.constants.weight.reshape(-1, kh * kw).T
        packed = pad_channels_last(weight).reshape(kh, kw, -1, LANES).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(packed, np.int16 if self.integer else np.float32)

    def emit_rows(self, image, block, first, rows) -> None:
        width = self.geometry.out_width
        tile = min(8, width)
        tiles, start = self.tiles(width, tile)
        per_channel = self.epilogue.per_channel(image, block)
        with T.serial(rows) as y, T.serial(tiles) as i:
            x = start(i)
            acc = registers(tile, self.acc_dtype)
            bias = let(load(self.bias, block * LANES))
            for p in range(tile):
                store(acc, p * LANES, bias)
            self._accumulate(acc, block, y, x, tile)
            for p in range(tile):
                value = load(acc, p * LANES)
                index, pixel = self.out_index(image, block, first + y, x + p)
                value = convert(value, "float32") if self.integer else value
                store(self.out, index, self.epilogue.emit(per_channel, index, pixel, value))

    def _accumulate(self, acc, block, y, x, tile: int) -> None:
        spec, g = self.spec, self.geometry
        (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.strides, spec.dilation
        unroll = kh * kw <= 25

        def tap(i, j) -> None:
            weight = load(self.weight, ((block * kh + i) * kw + j) * LANES)
            weight = let(convert(weight, "int32") if self.integer else weight)
            pixel = (y * sh + i * dh) * g.pitch + g.row_start + x * sw + j * dw
            for p in range(tile):
                value, old = load(self.padded, (pixel + p * sw) * LANES), load(acc, p * LANES)
                new = old + convert(value, "int32") * weight if self.integer else fma(value, weight, old)
                store(acc, p * LANES, new)

        if unroll:
            for i in range(kh):
                for j in range(kw):
                    tap(i, j)
        else:
            with T.serial(kh) as i, T.serial(kw) as j:
                tap(i, j)


def pad_channels_last(array: np.ndarray) -> np.ndarray:
    """Zeros behind the last axis, up to a multiple of 16."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % LANES)))


class _Interleaved(_Body):
    """Four pixels x 16 channels x up to four taps of a kernel row per group of four `vpdpbusd`."""

    form = "u8s8_avx512vnni"

    def __init__(self, spec: Conv2d, constants: Constants, knobs: dict):
        super().__init__(spec, constants, knobs)
        self.groups = -(-spec.kernel[1] // 4)
        self.interleaved_epilogue = runs_interleaved(spec)

    def packed_weight(self) -> np.ndarray:
        """[CB, KH, groups of 4 taps, 4 accumulators, 4 pixels (repeated), 4 channels, 4 taps] int8."""
        kh, kw = self.spec.kernel
        weight = pad_channels_last(self.constants.weight.reshape(-1, kh * kw).T).T
        weight = np.pad(weight.reshape(-1, kh, kw), ((0, 0), (0, 0), (0, -kw % 4)))
        weight = weight.reshape(-1, 4, 4, kh, self.groups, 4).transpose(0, 3, 4, 1, 2, 5)
        return np.ascontiguousarray(np.repeat(weight[..., None, :, :], PIXELS, axis=4), np.int8)

    def per_channel_arrays(self) -> list[np.ndarray]:
        bias, *channels = super().per_channel_arrays()
        return [np.concatenate([_spread(bias), np.zeros((1, 4, PIXELS, 4), np.int32)]), *(map(_spread, channels) if self.interleaved_epilogue else channels)]

    def emit_rows(self, image, block, first, rows) -> None:
        block_rows, width = self.knobs["rows"], self.geometry.out_width
        row_tiles, row_start = self.tiles(rows, block_rows)
        columns, column_start = (1, lambda i: 0) if width < PIXELS else self.tiles(width, PIXELS)
        if self.interleaved_epilogue:
            finish = _SpreadEpilogue(self, image, block).emit
        else:
            per_channel = self.epilogue.per_channel(image, block)
            finish = lambda y, x, accs: self._finish_by_pixel(per_channel, image, block, y, x, accs)  # noqa: E731
        zero = let(load(self.bias, self.spec.result.channel_blocks * 64, 1))
        with T.serial(row_tiles) as tile_y:
            y = row_start(tile_y)
            with T.serial(columns) as tile_x:
                self.hidden = let(tile_x & zero)
                self._emit_block(block, first, y, column_start(tile_x), finish)

    def hb(self):
        import os
        return self.hidden if os.environ.get("HB") else 0
    def hw(self):
        import os
        return self.hidden if os.environ.get("HW") else 0
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
                    accs[out_row] = [load(self.bias, (block * 4 + j) * LANES + self.hb()) for j in range(4)]
                for group in range(self.groups):
                    for j in range(4):
                        index = (((block * kh + i) * self.groups + group) * 4 + j) * 64 + self.hw()
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
            a, *others = taps[group * 4 : group * 4 + 4]
            b = others[0] if others else a
            c, d = others[1] if len(others) > 1 else None, others[-1]  if len(others) > 1 else None
            words = []
            for high in (False, True):
                first = unpack(a, b, 1, high)
                second = first if c is None else unpack(c, d, 1, high)
                words += [unpack(first, second, 2, False), unpack(first, second, 2, True)]
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

    def __init__(self, body: _Interleaved, image, block):
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
        results = [run_program(self.spec.program, values) for values in zip(*columns)]
        store(self.body.out, index, _narrow(results, self.spec.output), 64)

    def _values(self, operand, buffer, index, accs) -> list:
        """One float32 vector per accumulator."""
        if operand.kind == "acc":
            return [let(convert(acc, "float32")) for acc in accs]
        if operand.kind == "channel":
            return [load(buffer, (self.block * 4 + j) * LANES + self.body.hb()) for j in range(4)]
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

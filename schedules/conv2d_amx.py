"""Direct convolution on AMX: u8 x s8 -> s32 in tiles of 16 pixels x 16 output channels x 64 bytes of the reduction.

Algorithm
    The data are copied once, pixel-major, with their padding: [N, groups of channels, H, W, P bytes], P = 64 where
    channels come in 64s, all channels otherwise.  A row of the data tile is then 64 neighbouring bytes, the channels of
    one pixel or of a few neighbours, which are taps of the same kernel row:

        out[pixel, o] = bias[o] + sum over groups, kernel rows, spans of data[pixel's address + span][64] * weight[o][64]

    where the *spans* of a kernel row cover its kw * P contiguous bytes in 64s (weights behind the end are zero), or
    those of each tap where taps are dilated.  Sixteen rows of a tile are sixteen pixels a fixed distance apart.  With
    stride 1 a map is one long row, line ends included, whose products nobody reads (`flat`); otherwise tiles end with
    their line.  1x1 convolutions copy only the pixels they read.

Schedule
    Two data tiles x two weight tiles meet in four accumulators: 4 loads for 64 cycles of products.  A *chunk* of pixels
    x 32 output channels goes to a scratch of at most 32 KB and from there through the epilogue, in vectors of 16
    channels.  Either chunks run innermost and a panel of weights (32 channels) stays in the caches over all of them, or
    panels do and a chunk stays: whichever moves fewer bytes from L2.  Weights are packed as tiles in reading order;
    while a panel is in use, the next one is prefetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel

from . import amx
from .cpu import Cpu
from .epilogue import Epilogue
from .lanes import store_vectors
from .padding import emit_pixel_major_copy
from .rule import Constants, Rule, pad_channels
from .vector import KernelBuilder, convert, load, prefetch, scratch

PANEL = 2  # blocks of 16 output channels computed together
FEWEST_PIXELS = 8  # with fewer, a tile's rows are mostly empty, and weights arrive too slowly for it to matter
MOST_CHUNK_PIXELS = 256  # their accumulators take 32 KB
UNROLLED_SPANS = 32


@dataclass(frozen=True)
class Source:
    """The pixel-major copy: [n, groups, height, width, pixel bytes].

    step : the data's pixels from one to the next that is copied
    """

    groups: int
    height: int
    width: int
    pixel: int
    step: tuple[int, int] = (1, 1)

    @property
    def plane_bytes(self) -> int:
        return self.height * self.width * self.pixel


@dataclass(frozen=True)
class Geometry:
    """Where the rows of tiles lie.

    rows, width : the output's lines and their pixels; one line holds all pixels where nothing separates lines
    strides : the source's pixels from one output pixel to the next
    flat : whether tiles run on over the ends of lines
    """

    source: Source
    rows: int
    width: int
    strides: tuple[int, int]
    flat: bool

    @staticmethod
    def of(spec: Conv2d) -> Geometry:
        _, channels, _, _ = spec.inputs[0].shape
        _, _, rows, width = spec.result.shape
        block = spec.inputs[0].block
        whole = channels % amx.ROW_BYTES == 0 and block == LANES
        groups, pixel = (channels // amx.ROW_BYTES, amx.ROW_BYTES) if whole else (1, -(-channels // block) * block)
        if spec.kernel == (1, 1) and not any(spec.padding):
            pixels = rows * width
            return Geometry(Source(groups, 1, pixels, pixel, spec.strides), 1, pixels, (1, 1), True)
        (kh, kw), (sy, sx), (dy, dx) = spec.kernel, spec.strides, spec.dilation
        height = (rows - 1) * sy + (kh - 1) * dy + 1
        span = (width - 1) * sx + (kw - 1) * dx + 1
        along = -(-((rows - 1) * span + width) // amx.ROWS)
        flat = spec.strides == (1, 1) and along <= rows * -(-width // amx.ROWS)
        return Geometry(Source(groups, height, span, pixel), rows, width, spec.strides, flat)

    @property
    def tiles_per_line(self) -> int:
        return -(-self.width // amx.ROWS)

    @property
    def pitch(self) -> int:
        """Accumulators of a chunk from one line to the next."""
        return self.source.width if self.flat else self.tiles_per_line * amx.ROWS

    def tiles(self, rows: int, width: int) -> int:
        """Tiles that cover a chunk."""
        return -(-((rows - 1) * self.pitch + width) // amx.ROWS)

    @property
    def row_bytes(self) -> int:
        """Bytes from one row of a tile to the next."""
        return self.strides[1] * self.source.pixel

    def tile_offset(self, tile) -> Any:
        """Bytes from a chunk's first pixel to a tile's."""
        if self.flat:
            return tile * (amx.ROWS * self.source.pixel)
        line, column = tile // self.tiles_per_line, tile % self.tiles_per_line
        line_bytes = self.strides[0] * self.source.width * self.source.pixel
        return line * line_bytes + column * (amx.ROWS * self.row_bytes)


@dataclass(frozen=True)
class Span:
    """64 bytes of the reduction: kernel row, byte offset from the tile's pixel, and the taps and channels they hold."""

    row: int
    offset: int
    first: int  # first byte within the kernel row's taps (all taps, or the one)
    tap: int | None = None  # the tap, where taps do not lie side by side


def spans_of(spec: Conv2d, source: Source) -> list[Span]:
    """The spans of one group of channels."""
    (kh, kw), (dy, dx), found = spec.kernel, spec.dilation, []
    for i in range(kh):
        line = i * dy * source.width * source.pixel
        if dx == 1 or kw == 1:
            starts = range(0, kw * source.pixel, amx.ROW_BYTES)
            found += [Span(i, line + start, start) for start in starts]
        else:
            starts = range(0, source.pixel, amx.ROW_BYTES)
            found += [Span(i, line + j * dx * source.pixel + s, s, j) for j in range(kw) for s in starts]
    return found


def heuristic_knobs(spec: Conv2d, geometry: Geometry, spans: int, cpu: Cpu) -> dict:
    """rows and width of a chunk, and which loop is outermost."""
    rows, width = geometry.rows, geometry.width
    if rows == 1:
        chunks = -(-width // (MOST_CHUNK_PIXELS // 2))
        chunk_rows, chunk_width = 1, min(width, -(-width // chunks // amx.ROWS // 2) * amx.ROWS * 2 or width)
        chunk_width = min(width, -(-(-(-width // chunks)) // (2 * amx.ROWS)) * 2 * amx.ROWS)
        chunks = -(-width // chunk_width)
    else:
        best = None
        for count in range(1, rows + 1):
            tiles = geometry.tiles(count, width)
            if count > 1 and tiles * amx.ROWS > MOST_CHUNK_PIXELS:
                break
            whole, rest = divmod(rows, count)
            pairs = whole * -(-tiles // 2) + (-(-geometry.tiles(rest, width) // 2) if rest else 0)
            cost = pairs * (1 + tiles * amx.ROWS / MOST_CHUNK_PIXELS / 16)
            if best is None or cost < best[0]:
                best = (cost, count)
        chunk_rows, chunk_width = best[1], width
        chunks = -(-rows // chunk_rows)
    panels = -(-spec.result.channel_blocks // PANEL)
    weights = geometry.source.groups * spans * amx.TILE_BYTES * spec.result.channel_blocks
    data = geometry.source.groups * geometry.source.plane_bytes
    few = weights <= cpu.l2_bytes // 2 and weights * chunks + data <= data * panels + weights
    return {"rows": chunk_rows, "width": chunk_width, "order": "pixels" if few else "channels"}


class Conv2dAmxRule(Rule):
    """Convolutions of u8 data without groups, on CPUs with AMX, whose maps fill tiles."""

    def applies(self, spec, cpu: Cpu) -> bool:
        return (
            cpu.amx
            and isinstance(spec, Conv2d)
            and spec.inputs[0].dtype == "uint8"
            and spec.inputs[0].block in (4, LANES)
            and spec.result.block == LANES
            and spec.groups == 1
            and not spec.transposed
            and spec.pad_value is not None
            and spec.result.shape[2] * spec.result.shape[3] >= FEWEST_PIXELS
        )

    def build(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        return _Builder(spec, constants, cpu, knobs).build()


class _Builder:
    def __init__(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None):
        self.spec, self.constants, self.cpu = spec, constants, cpu
        self.data, self.result = spec.inputs[0], spec.result
        self.geometry = Geometry.of(spec)
        self.spans = spans_of(spec, self.geometry.source)
        self.knobs = knobs or heuristic_knobs(spec, self.geometry, len(self.spans), cpu)
        self.steps = self.geometry.source.groups * len(self.spans)

    def build(self) -> Kernel:
        spec = self.spec
        weight, epilogue = self._packed_weight(), Epilogue(spec, self.constants)
        bias = np.zeros(spec.result.shape[1], np.int32) if self.constants.bias is None else self.constants.bias
        bias = pad_channels(bias.astype(np.int32))
        with KernelBuilder(f"conv2d_u8s8_amx_{spec.kernel[0]}x{spec.kernel[1]}") as k:
            data, *rest = k.arguments(
                ("data", self.data.physical_shape, self.data.dtype),
                *epilogue.tensor_parameters(),
                ("weight", weight.shape, "int8"),
                ("bias", bias.shape, "int32"),
                *epilogue.channel_parameters(),
                ("out", self.result.physical_shape, self.result.dtype),
            )
            operands = len(epilogue.tensor_parameters())
            self.weight, self.bias, self.out = rest[operands], rest[operands + 1], rest[-1]
            epilogue.bind(rest[:operands], rest[operands + 2 : -1])
            self.epilogue = epilogue
            self.source = self._pixel_major(data)
            self._emit_tasks()
        func = k.func.with_attr(amx.NEEDS_PERMISSION, True)
        return Kernel(func, (weight, bias, *epilogue.channel_arrays()), k.name, dict(self.knobs))

    def _packed_weight(self) -> np.ndarray:
        """Weight tiles in reading order: panels x groups x spans x blocks of the panel x [16][16][4]."""
        source, (kh, kw) = self.geometry.source, self.spec.kernel
        out_blocks, bytes_per_tap = self.result.channel_blocks, source.pixel
        channels = self.data.shape[1]
        dense = np.zeros((out_blocks * LANES, source.groups * bytes_per_tap, kh, kw), np.int8)
        dense[: self.result.shape[1], :channels] = self.constants.weight
        dense = dense.reshape(out_blocks, LANES, source.groups, bytes_per_tap, kh, kw)
        dense = dense.transpose(0, 2, 4, 5, 3, 1)  # block, group, kernel row, tap, byte, channel
        tiles = np.zeros((out_blocks, source.groups, len(self.spans), amx.ROW_BYTES, LANES), np.int8)
        for s, span in enumerate(self.spans):
            taps = dense[:, :, span.row] if span.tap is None else dense[:, :, span.row, span.tap : span.tap + 1]
            row = taps.reshape(out_blocks, source.groups, -1, LANES)[:, :, span.first : span.first + amx.ROW_BYTES]
            tiles[:, :, s, : row.shape[2]] = row
        tiles = tiles.reshape(out_blocks, self.steps, LANES, 4, LANES).transpose(0, 1, 2, 4, 3)
        panels = [tiles[i : i + PANEL].swapaxes(0, 1).ravel() for i in range(0, out_blocks, PANEL)]
        return np.concatenate(panels)

    def _pixel_major(self, data):
        source, spec = self.geometry.source, self.spec
        overhang = (PANEL * amx.ROWS * self.geometry.strides[1] + 2) * source.pixel + amx.ROW_BYTES
        return emit_pixel_major_copy(data, self.data, source, spec.padding[:2], spec.pad_value, overhang)

    def _emit_tasks(self) -> None:
        geometry, panels = self.geometry, -(-self.result.channel_blocks // PANEL)
        chunk = self.knobs["rows"] if geometry.rows > 1 else self.knobs["width"]
        whole = geometry.rows if geometry.rows > 1 else geometry.width
        chunks = -(-whole // chunk)
        images = self.data.shape[0]
        outer, inner = (chunks, panels) if self.knobs["order"] == "pixels" else (panels, chunks)
        parts = self._parts(images * outer, inner)
        per_part = -(-inner // parts)
        parts = -(-inner // per_part)
        with T.parallel(images * outer * parts) as task, amx.tiles():
            part, rest = task % parts, task // parts
            o, image = rest % outer, rest // outer
            accumulators = scratch(self._chunk_pixels() * PANEL * LANES, "int32")
            begin = T.Bind(part * per_part)
            count = per_part if inner % per_part == 0 else T.min(per_part, inner - begin)
            with T.serial(count) as i:
                index, panel = (o, begin + i) if self.knobs["order"] == "pixels" else (begin + i, o)
                self._emit_chunk(image, index, panel, accumulators)

    def _parts(self, outer: int, inner: int) -> int:
        """Into how many tasks the inner loop is cut: more than one only where threads would idle."""
        if self.cpu.threads == 1 or outer % self.cpu.threads == 0 or outer >= 8 * self.cpu.threads:
            return 1
        return min(inner, 4 * self.cpu.threads)

    def _chunk_pixels(self) -> int:
        tiles = self.geometry.tiles(self.knobs["rows"], self.knobs["width"])
        return -(-tiles // 2) * 2 * amx.ROWS

    def _emit_chunk(self, image, index, panel, accumulators) -> None:
        """One chunk x one panel, in its four forms: the last chunk may be smaller, and so may the last panel."""
        geometry, blocks = self.geometry, self.result.channel_blocks
        lines = geometry.rows > 1
        chunk, whole = (self.knobs["rows"], geometry.rows) if lines else (self.knobs["width"], geometry.width)
        chunks, last = -(-whole // chunk), whole % chunk or chunk

        def by_size(count: int) -> None:
            def emit(size: int) -> None:
                rows, width = (size, geometry.width) if lines else (1, size)
                self._emit_tiles(image, index * chunk, panel, accumulators, rows, width, count)
                self._emit_epilogue(image, index * chunk, panel, accumulators, rows, width, count)

            _branch(index < chunks - 1, chunks > 1 and last != chunk, lambda: emit(chunk), lambda: emit(last))

        panels = -(-blocks // PANEL)
        odd = blocks % PANEL
        if odd and panels == 1:
            by_size(odd)
        else:
            _branch(panel < panels - 1, odd, lambda: by_size(PANEL), lambda: by_size(odd))

    def _emit_tiles(self, image, first, panel, accumulators, rows: int, width: int, blocks: int) -> None:
        geometry, source = self.geometry, self.geometry.source
        tiles = geometry.tiles(rows, width)
        per_line = geometry.strides[0] * source.width if geometry.rows > 1 else 1
        base = T.Bind(image * (source.groups * source.plane_bytes) + first * (per_line * source.pixel))
        weights = T.Bind(panel * (self.steps * PANEL * amx.TILE_BYTES))
        pairs, single = divmod(tiles, 2)
        share = 0
        if self.knobs["order"] == "channels":
            share = -(-(PANEL * amx.TILE_BYTES // 64) // max(1, (pairs + single)))

        def block(tile, count: int) -> None:
            starts = [T.Bind(base + geometry.tile_offset(tile + m)) for m in range(count)]
            for m in range(count):
                for o in range(blocks):
                    amx.load_tile(m * 2 + o, self.bias, (panel * PANEL + o) * LANES, 0)
            with T.serial(source.groups) as group:
                offset = group * source.plane_bytes
                step = T.Bind(weights + group * (len(self.spans) * blocks * amx.TILE_BYTES))
                for s, span in enumerate(self.spans):
                    tile_address = step + s * blocks * amx.TILE_BYTES
                    self._emit_step([start + offset + span.offset for start in starts], tile_address, blocks)
                    if share:
                        ahead = step + self.steps * PANEL * amx.TILE_BYTES + s * blocks * amx.TILE_BYTES
                        for line in range(share):
                            prefetch(self.weight, ahead + (tile // 2 * share + line) * 64)
            for m in range(count):
                for o in range(blocks):
                    at = (o * self._chunk_pixels() + (tile + m) * amx.ROWS) * LANES
                    amx.store_tile(m * 2 + o, accumulators, at)

        if pairs:
            with T.serial(pairs) as pair:
                block(pair * 2, 2)
        if single:
            block(tiles - 1, 1)

    def _emit_step(self, data, weight, blocks: int) -> None:
        """Load `len(data)` data tiles and `blocks` weight tiles, and multiply all pairs."""
        for o in range(blocks):
            amx.load_tile(6 + o, self.weight, weight + o * amx.TILE_BYTES, amx.ROW_BYTES)
        for m, address in enumerate(data):
            amx.load_tile(4 + m, self.source, address, self.geometry.row_bytes)
            for o in range(blocks):
                amx.dot(m * 2 + o, 4 + m, 6 + o)

    def _emit_epilogue(self, image, first, panel, accumulators, rows: int, width: int, blocks: int) -> None:
        geometry, pixels = self.geometry, self.geometry.rows * self.geometry.width
        for o in range(blocks):
            plane = T.Bind(image * self.result.channel_blocks + panel * PANEL + o)
            per_channel = self.epilogue.per_channel(image, panel * PANEL + o)
            with T.serial(rows) as row:
                line = T.Bind(first * (geometry.width if geometry.rows > 1 else 1) + row * geometry.width)
                source = T.Bind((o * self._chunk_pixels() + row * geometry.pitch) * LANES)

                def emit(column, count: int) -> None:
                    values = []
                    for i in range(count):
                        at = (plane * pixels + line + column + i) * LANES  # noqa: B023
                        value = convert(load(accumulators, source + (column + i) * LANES), "float32")  # noqa: B023
                        pixel = image * pixels + line + column + i  # noqa: B023
                        values.append(self.epilogue.run(per_channel, at, pixel, value))  # noqa: B023
                    at = (plane * pixels + line + column) * LANES  # noqa: B023
                    store_vectors(self.out, at, values, self.spec.output, self.cpu)

                fours, rest = divmod(width, 4)
                if fours:
                    with T.serial(fours) as four:
                        emit(four * 4, 4)
                if rest:
                    emit(fours * 4, rest)


def _branch(condition, needed, then, otherwise) -> None:
    if not needed:
        then()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()

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
from .padding import emit_interleaved, emit_pixel_major_copy
from .rule import Constants, Rule, pad_channels
from .value_range import accumulator_range, fits_int32
from .vector import KernelBuilder, convert, load, prefetch, scratch, when

PANEL = 2  # blocks of 16 output channels computed together
FEWEST_PIXELS = 8  # with fewer, a tile's rows are mostly empty, and weights arrive too slowly for it to matter
BLOCK = 2 * amx.ROWS  # pixels computed together
MOST_JOINED_TILES = 8  # each block of a map of joined lines has code of its own
CHUNK_BYTES = 16 << 10  # of data that stay in L1 while panels pass
CACHE_LINE = 64


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
class Run:
    """Neighbouring pixels of the output: the row of the block's tiles where they begin, the first of them, how many."""

    row: int
    pixel: int
    count: int


@dataclass(frozen=True)
class Segment:
    """`count` equal blocks in a line of blocks.

    tiles : bytes from a block's origin to each of its one or two tiles
    runs : which of the tiles' rows are pixels of the output
    source_step, pixel_step : bytes of the source and pixels of the output from one block to the next
    """

    tiles: tuple[int, ...]
    runs: tuple[Run, ...]
    count: int = 1
    source_step: int = 0
    pixel_step: int = 0

    def runs_of_tile(self, tile: int) -> list[Run]:
        """The parts of the runs that lie in a tile."""
        first, found = tile * amx.ROWS, []
        for run in self.runs:
            low, high = max(run.row, first), min(run.row + run.count, first + amx.ROWS)
            if low < high:
                found.append(Run(low, run.pixel + low - run.row, high - low))
        return found


@dataclass(frozen=True)
class Geometry:
    """How pixels lie in tiles: `lines` equal lines of blocks, each the same segments one behind the other.

    row_bytes : bytes from one row of a tile to the next
    line_bytes, line_pixels : bytes of the source and pixels of the output from one line to the next
    """

    source: Source
    row_bytes: int
    segments: tuple[Segment, ...]
    lines: int = 1
    line_bytes: int = 0
    line_pixels: int = 0

    @property
    def blocks_per_line(self) -> int:
        return sum(segment.count for segment in self.segments)

    @property
    def blocks(self) -> int:
        return self.lines * self.blocks_per_line

    @staticmethod
    def of(spec: Conv2d) -> Geometry:
        channels, block = spec.inputs[0].shape[1], spec.inputs[0].block
        _, _, height, width = spec.result.shape
        whole = channels % amx.ROW_BYTES == 0 and block == LANES
        groups, pixel = (channels // amx.ROW_BYTES, amx.ROW_BYTES) if whole else (1, -(-channels // block) * block)
        if spec.kernel == (1, 1) and not any(spec.padding):
            source = Source(groups, 1, height * width, pixel, spec.strides)
            return Geometry(source, pixel, _long_line(height * width, pixel))
        (kh, kw), (sy, sx), (dy, dx) = spec.kernel, spec.strides, spec.dilation
        source = Source(groups, (height - 1) * sy + (kh - 1) * dy + 1, (width - 1) * sx + (kw - 1) * dx + 1, pixel)
        row, line = sx * pixel, sy * source.width * pixel
        joined = -(-((height - 1) * source.width + width) // amx.ROWS)
        if spec.strides == (1, 1) and joined <= MOST_JOINED_TILES and joined < height * -(-width // amx.ROWS):
            return Geometry(source, row, _joined_lines(height, width, source.width, pixel))
        if width <= amx.ROWS:
            return Geometry(source, row, _pairs_of_lines(height, width, line))
        return Geometry(source, row, _long_line(width, row), height, line, width)


def _long_line(pixels: int, row_bytes: int) -> tuple[Segment, ...]:
    """Pixels side by side: blocks of 32, and the rest."""
    full, rest = divmod(pixels, BLOCK)
    step = BLOCK * row_bytes
    found = [Segment((0, step // 2), (Run(0, 0, BLOCK),), full, step, BLOCK)] if full else []
    if rest:
        offsets = tuple(full * step + i * step // 2 for i in range(-(-rest // amx.ROWS)))
        found.append(Segment(offsets, (Run(0, full * BLOCK, rest),)))
    return tuple(found)


def _pairs_of_lines(height: int, width: int, line: int) -> tuple[Segment, ...]:
    """Lines of at most 16 pixels, a tile each."""
    both = (Run(0, 0, width), Run(amx.ROWS, width, width))
    found = [Segment((0, line), both, height // 2, 2 * line, 2 * width)] if height > 1 else []
    if height % 2:
        found.append(Segment(((height - 1) * line,), (Run(0, (height - 1) * width, width),)))
    return tuple(found)


def _joined_lines(height: int, width: int, pitch: int, pixel: int) -> tuple[Segment, ...]:
    """A small map whose tiles run on over the ends of its lines."""
    found = []
    for start in range(0, (height - 1) * pitch + width, BLOCK):
        end = min(start + BLOCK, (height - 1) * pitch + width)
        runs = []
        for y in range(height):
            low, high = max(start, y * pitch), min(end, y * pitch + width)
            if low < high:
                runs.append(Run(low - start, y * width + low - y * pitch, high - low))
        tiles = range(start, end, amx.ROWS)
        found.append(Segment(tuple(t * pixel for t in tiles), tuple(runs)))
    return tuple(found)


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
    """chunk (blocks of pixels), panels, and which of the two loops over them is outermost.

    Either all panels of weights are read for every chunk, or all pixels for every panel, from L2.
    """
    panels = -(-spec.result.channel_blocks // PANEL)
    weights = geometry.source.groups * spans * amx.TILE_BYTES * spec.result.channel_blocks
    data = geometry.source.groups * geometry.source.plane_bytes
    per_block = max(1, data // geometry.blocks)
    chunk = min(geometry.blocks, max(1, CHUNK_BYTES // per_block))
    chunks = -(-geometry.blocks // chunk)
    if weights <= cpu.l2_bytes // 2 and weights * chunks <= data * panels:
        chunks = max(chunks, min(geometry.blocks, 4 * cpu.threads if cpu.threads > 1 else 1))
        return {"order": "pixels", "chunk": -(-geometry.blocks // chunks), "panels": panels}
    parts = 1
    if cpu.threads > 1 and panels % cpu.threads and panels < 8 * cpu.threads:
        parts = min(geometry.blocks, 2 * cpu.threads)
    return {"order": "channels", "chunk": -(-geometry.blocks // parts), "panels": 1}


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
        self.fits_int32 = fits_int32(spec.program, constants, accumulator_range(spec, constants))
        self.steps = self.geometry.source.groups * len(self.spans)
        source, pointwise = self.geometry.source, spec.kernel == (1, 1) and not any(spec.padding)
        self.packs_chunks = pointwise and source.step == (1, 1) and self.knobs["order"] == "pixels"
        self.plane_bytes = self.knobs["chunk"] * BLOCK * source.pixel if self.packs_chunks else source.plane_bytes

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
            self.source = None if self.packs_chunks else self._pixel_major(data)
            self._emit_tasks(data)
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
        overhang = (BLOCK * self.spec.strides[1] + 2) * source.pixel + amx.ROW_BYTES
        return emit_pixel_major_copy(data, self.data, source, spec.padding[:2], spec.pad_value, overhang)

    def _pack_chunk(self, data, image, first_block, count) -> None:
        """The pixels of one chunk, for 1x1 convolutions: a copy that stays in L1."""
        source, block = self.geometry.source, self.data.block
        self.source = scratch(source.groups * self.plane_bytes + source.pixel + amx.ROW_BYTES, self.data.dtype)
        blocks, first = source.pixel // block, T.Bind(first_block * BLOCK)
        pixels = T.Bind(T.min(count * BLOCK, source.width - first))
        with T.serial(source.groups) as group:
            plane = (image * self.data.channel_blocks + group * blocks) * source.width
            start = group * self.plane_bytes
            emit_interleaved(self.source, start, data, plane + first, pixels, (blocks, block), source.width)

    def _emit_tasks(self, data) -> None:
        """Chunks x groups of panels, all in one parallel loop; in a task, blocks run innermost.

        A block's products and the epilogue of the block before it stand side by side, for the CPU to overlap them.
        """
        chunk, group = self.knobs["chunk"], self.knobs["panels"]
        blocks, panels = self.geometry.blocks, -(-self.result.channel_blocks // PANEL)
        chunks, groups = -(-blocks // chunk), -(-panels // group)
        with T.parallel(self.data.shape[0] * chunks * groups) as task, amx.tiles():
            accumulators = scratch(BLOCK * PANEL * LANES, "int32")
            image, rest = task // (chunks * groups), task % (chunks * groups)
            c, g = (rest // groups, rest % groups) if self.knobs["order"] == "pixels" else (rest % chunks, rest // chunks)
            first_block, first_panel = T.Bind(c * chunk), T.Bind(g * group)
            count = T.Bind(_at_most(chunk, blocks, first_block))
            total = T.Bind(count * _at_most(group, panels, first_panel))
            per_thread = -(-chunks // self.cpu.threads)
            self.first_visit = T.Bind(c % per_thread == 0) if self.knobs["order"] == "pixels" else True
            if self.packs_chunks:
                self._pack_chunk(data, image, first_block, count)
                self.origin = first_block * (-BLOCK * self.geometry.source.pixel)
            else:
                self.origin = image * (self.geometry.source.groups * self.plane_bytes)
            with T.serial(total + 1) as i:
                with when(i < total):
                    block, panel = T.Bind(first_block + i % count), T.Bind(first_panel + i // count)
                    self._emit(self._emit_products, image, block, panel)
                with when(i > 0):
                    block, panel = T.Bind(first_block + (i - 1) % count), T.Bind(first_panel + (i - 1) // count)
                    self._emit(self._emit_epilogue, image, block, panel, accumulators)
                with when(i == 0):
                    for tile in range(2 * PANEL):
                        amx.store_tile(tile, accumulators, tile * amx.ROWS * LANES)

    def _emit(self, emit, image, block, panel, *arguments) -> None:
        """`emit` one block in each of its forms: segments differ, and the last panel may hold one block of channels."""
        geometry, channel_blocks = self.geometry, self.result.channel_blocks
        line, position = block // geometry.blocks_per_line, block % geometry.blocks_per_line

        def in_segment(segment: Segment, start: int, width: int) -> None:
            source = T.Bind(line * geometry.line_bytes + (position - start) * segment.source_step)
            pixel = T.Bind(line * geometry.line_pixels + (position - start) * segment.pixel_step)
            emit(_Place(image, panel, segment, source, pixel, block, width), *arguments)

        def by_segment(width: int, segments=geometry.segments, start: int = 0) -> None:
            first, *others = segments
            _branch(
                position < start + first.count,
                others,
                lambda: in_segment(first, start, width),
                lambda: by_segment(width, others, start + first.count),
            )

        panels, odd = -(-channel_blocks // PANEL), channel_blocks % PANEL
        if odd and panels == 1:
            by_segment(odd)
        else:
            _branch(panel < panels - 1, odd, lambda: by_segment(PANEL), lambda: by_segment(odd))

    def _emit_products(self, place: _Place) -> None:
        """The products of one block of pixels and one panel."""
        source, width = self.geometry.source, place.width
        starts = [T.Bind(self.origin + place.source + offset) for offset in place.segment.tiles]
        weights = T.Bind(place.panel * (self.steps * PANEL * amx.TILE_BYTES))
        for m in range(len(starts)):
            for o in range(width):
                amx.load_tile(m * PANEL + o, self.bias, (place.panel * PANEL + o) * LANES, 0)
        with T.serial(source.groups) as group:
            step = T.Bind(weights + group * (len(self.spans) * width * amx.TILE_BYTES))
            for s, span in enumerate(self.spans):
                at = step + s * width * amx.TILE_BYTES
                self._emit_step([start + group * self.plane_bytes + span.offset for start in starts], at, width)
                self._prefetch_weights(place, at)

    def _emit_step(self, data, weight, width: int) -> None:
        """Load `len(data)` data tiles and `width` weight tiles, and multiply all pairs."""
        for o in range(width):
            amx.load_tile(6 + o, self.weight, weight + o * amx.TILE_BYTES, amx.ROW_BYTES)
        for m, address in enumerate(data):
            amx.load_tile(4 + m, self.source, address, self.geometry.row_bytes)
            for o in range(width):
                amx.dot(m * PANEL + o, 4 + m, 6 + o)

    def _prefetch_weights(self, place: _Place, at) -> None:
        """A block's share of the next panel's weights, as long as panels are met for the first time."""
        share = -(-PANEL * amx.TILE_BYTES // CACHE_LINE // self.knobs["chunk"])
        ahead = at + self.steps * PANEL * amx.TILE_BYTES + place.block % self.knobs["chunk"] * (share * CACHE_LINE)
        with when(self.first_visit):
            for line in range(share):
                prefetch(self.weight, ahead + line * CACHE_LINE, into_l1=False)

    def _emit_epilogue(self, place: _Place, accumulators) -> None:
        """The epilogue of the block before, tile by tile, and in each tile's place the products of the current block."""
        for o in range(PANEL):
            if o < place.width:
                vectors = self._vectors(place, o)
            for m in range(2):
                tile = m * PANEL + o
                if o < place.width:
                    for run in place.segment.runs_of_tile(m):
                        vectors(accumulators, tile * amx.ROWS * LANES, m, run)
                amx.store_tile(tile, accumulators, tile * amx.ROWS * LANES)

    def _vectors(self, place: _Place, o: int):
        """A function that emits the epilogue of one run of pixels of the panel's block `o` of channels."""
        _, _, height, width = self.result.shape
        channels = place.panel * PANEL + o
        plane = T.Bind((place.image * self.result.channel_blocks + channels) * (height * width) + place.pixel)
        pixels = T.Bind(place.image * (height * width) + place.pixel)
        per_channel = self.epilogue.per_channel(place.image, channels)

        def emit(accumulators, tile, m: int, run: Run) -> None:
            def group(start, count: int) -> None:
                at, values = plane + run.pixel + start, []
                for i in range(count):
                    row = run.row - m * amx.ROWS + start + i
                    value = convert(load(accumulators, tile + row * LANES), "float32")
                    pixel = pixels + run.pixel + start + i
                    values.append(self.epilogue.run(per_channel, (at + i) * LANES, pixel, value))
                store_vectors(self.out, at * LANES, values, self.spec.output, self.cpu, self.fits_int32)

            fours, rest = divmod(run.count, 4)
            if fours:
                with T.serial(fours) as four:
                    group(four * 4, 4)
            if rest:
                group(fours * 4, rest)

        return emit


@dataclass(frozen=True)
class _Place:
    """One block of pixels and one panel: image, panel, the block's segment, source and pixel offsets, its number.

    width : blocks of 16 output channels in the panel
    """

    image: Any
    panel: Any
    segment: Segment
    source: Any
    pixel: Any
    block: Any
    width: int


def _at_most(size: int, total: int, first):
    """How many of `total` are left from `first` on, but at most `size`."""
    return size if total % size == 0 else T.min(size, total - first)


def _branch(condition, needed, then, otherwise) -> None:
    if not needed:
        then()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()

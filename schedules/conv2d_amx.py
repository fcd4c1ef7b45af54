"""Direct convolution on AMX: u8 x s8 -> s32 in tiles of 16 pixels x 16 output channels x 64 bytes of the reduction.

Algorithm
    See `amx_geometry`.

Schedule
    Two data tiles x two weight tiles meet in four accumulators: 4 loads for 64 cycles of products.  Such a *block* of
    32 pixels x a *panel* of 32 output channels passes through a scratch of 4 KB to the epilogue, which works on vectors
    of 16 channels while the tiles compute the next block: a tile's accumulators are stored where the epilogue has just
    read the ones before, because bursts of stores stall the loads behind them.

    Either a chunk of blocks stays in L1 while all panels of weights pass, or a panel stays while all blocks pass,
    whichever reads fewer bytes from L2.  1x1 convolutions copy a chunk just before they use it.  Weights are packed as
    tiles in reading order; while a panel is met for the first time, the next one is fetched from L3 or memory.

Evidence
    Intel Xeon with AMX (Sapphire Rapids), one thread, peak 3400 GMAC/s, warm: 3x3 layers of ResNet-50 at 1700..2100
    GMAC/s; 64 -> 256 1x1 at 56x56, bound by its epilogue, at 780.  Rejected: a chunk's products first, then its
    epilogue (3x3 at 1550, 64 -> 256 at 540: nothing overlaps); two scratches (loads from one wait for stores to the
    other, 4 KB apart).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel

from . import amx, conv2d_geometry
from .amx_geometry import BLOCK, PANEL, Geometry, Reduction, Run, Segment, packed_weight, reads_single_pixels
from .conv2d_amx_knobs import knob_space
from .cpu import Cpu
from .epilogue import Epilogue
from .knobs import KnobSpace
from .lanes import store_vectors
from .padding import emit_interleaved, emit_pixel_major_copy, emit_stacked_image
from .programs import side_by_side
from .rule import Constants, Rule, pad_channels
from .value_range import accumulator_range, fits_int32
from .vector import KernelBuilder, branch, convert, load, prefetch, scratch, when

FEWEST_PIXELS = 8  # with fewer, a tile's rows are mostly empty, and weights arrive too slowly for it to matter
ACCUMULATORS = BLOCK * PANEL * LANES  # of a block
CACHE_LINE = 64


def _pays(spec: Conv2d) -> bool:
    """Whether tiles need fewer cycles than `vpdpbusd` for a block and a panel: not for very few products per output."""
    geometry = Geometry.of(spec)
    steps = geometry.source.groups * len(Reduction.of(spec, geometry.source).spans)
    width = min(PANEL, spec.result.channel_blocks)
    instructions = conv2d_geometry.Reduction.of(spec, 4).length * spec.kernel[0] * spec.kernel[1]
    tiles = steps * (64 if width == PANEL else 52) + 60 + 100 * width
    vectors = BLOCK * width * (instructions / 2 + 2.5)
    return tiles < vectors


class Conv2dAmxRule(Rule):
    """Convolutions of u8 data on CPUs with AMX, whose maps fill tiles."""

    template = "conv2d_amx"
    version = 1

    def knob_space(self, spec: Conv2d, cpu: Cpu) -> KnobSpace:
        return knob_space(spec, cpu)

    def applies(self, spec, cpu: Cpu) -> bool:
        return (
            cpu.amx
            and type(spec) is Conv2d
            and spec.inputs[0].dtype == "uint8"
            and spec.inputs[0].block in (4, LANES)
            and spec.result.block == LANES
            and not spec.transposed
            and spec.pad_value is not None
            and spec.result.shape[2] * spec.result.shape[3] >= FEWEST_PIXELS
            and _pays(spec)
        )

    def build(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        return _Builder(spec, constants, cpu, knobs).build()


class _Builder:
    def __init__(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None):
        self.spec, self.constants, self.cpu = spec, constants, cpu
        self.data, self.result = spec.inputs[0], spec.result
        self.geometry = Geometry.of(spec)
        self.reduction = Reduction.of(spec, self.geometry.source)
        self.spans = self.reduction.spans
        self.knobs = knobs or knob_space(spec, cpu).heuristic
        self.fits_int32 = fits_int32(spec.program, constants, accumulator_range(spec, constants))
        self.steps = self.geometry.source.groups * len(self.spans)
        source, whole = self.geometry.source, spec.strides == (1, 1) and self.knobs["order"] == "pixels"
        self.packs_chunks = whole and reads_single_pixels(spec)
        self.plane_bytes = self.knobs["chunk"] * BLOCK * source.pixel if self.packs_chunks else source.plane_bytes

    def build(self) -> Kernel:
        spec = self.spec
        weight = self._packed_weight(self.constants.weight)
        epilogue = Epilogue(spec, self.constants)
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
            self.source: Any = None if self.packs_chunks else self._pixel_major(data)
            self._emit_tasks(data)
        func = k.func.with_attr(amx.NEEDS_PERMISSION, True)
        constants = (weight, bias, *epilogue.channel_arrays())
        return Kernel(func, constants, k.name, dict(self.knobs), pack_weight=self._packed_weight)

    def _packed_weight(self, weight: np.ndarray) -> np.ndarray:
        return packed_weight(self.spec, weight, self.geometry.source, self.reduction)

    def _pixel_major(self, data):
        source, spec = self.geometry.source, self.spec
        overhang = (BLOCK * self.spec.strides[1] + 2) * source.pixel + amx.ROW_BYTES
        emit = emit_stacked_image if source.rows > 1 else emit_pixel_major_copy
        return emit(data, self.data, source, spec.padding[:2], spec.pad_value, overhang)

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
        images = self.data.shape[0]
        with T.parallel(images * chunks * groups) as task, amx.tiles():
            accumulators = scratch(max(self.knobs["strip"], 1) * ACCUMULATORS, "int32")
            by_pixels = self.knobs["order"] == "pixels"
            if by_pixels:
                g, c, image = task % groups, task // groups % chunks, task // (groups * chunks)
            else:  # images inside panels, so that these are read once for all images
                c, image, g = task % chunks, task // chunks % images, task // (chunks * images)
            first_block, first_panel = T.Bind(c * chunk), T.Bind(g * group)
            count = T.Bind(_at_most(chunk, blocks, first_block))
            per_thread = -(-chunks // self.cpu.threads)
            self.first_visit = T.Bind(c % per_thread == 0 if by_pixels else image == 0)
            if self.packs_chunks:
                self._pack_chunk(data, image, first_block, count)
                self.origin = first_block * (-BLOCK * self.geometry.source.pixel)
            else:
                self.origin = image * (self.geometry.source.groups * self.plane_bytes)
            visited = _Visit(image, first_block, count, first_panel, _at_most(group, panels, first_panel))
            (self._emit_strips if self.knobs["strip"] else self._emit_blocks)(visited, accumulators)

    def _emit_blocks(self, visit: _Visit, accumulators) -> None:
        """Panels, and in each of them blocks, as one loop."""
        groups = (0, self.geometry.source.groups)
        with T.serial(visit.blocks * visit.panels + 1) as i:
            with when(i < visit.blocks * visit.panels):
                block, panel = visit.first_block + i % visit.blocks, visit.first_panel + i // visit.blocks
                self._emit(self._emit_products, visit.image, T.Bind(block), T.Bind(panel), groups)
            with when(i > 0):
                before = i - 1
                block, panel = visit.first_block + before % visit.blocks, visit.first_panel + before // visit.blocks
                self._emit(self._emit_epilogue, visit.image, T.Bind(block), T.Bind(panel), accumulators, 0, 0)
            with when(i == 0):
                self._store(accumulators, 0)

    def _emit_strips(self, visit: _Visit, accumulators) -> None:
        """Panels, strips of blocks, parts of the panel, blocks; accumulators wait in memory while parts change."""
        strip, part, groups = self.knobs["strip"], self.knobs["part"], self.geometry.source.groups
        parts = -(-groups // part)
        with T.serial(visit.panels) as p, T.serial((visit.blocks + strip - 1) // strip) as s:
            panel, first = T.Bind(visit.first_panel + p), T.Bind(visit.first_block + s * strip)
            count = T.Bind(T.min(strip, visit.blocks - s * strip))
            with T.serial(parts - 1) as j, T.serial(count) as b:
                read = (j * part, part)
                bank = b * ACCUMULATORS
                self._emit(self._emit_products, visit.image, T.Bind(first + b), panel, read, accumulators, bank, j > 0)
                self._store(accumulators, bank)
            last = ((parts - 1) * part, groups - (parts - 1) * part)
            with T.serial(count + 1) as b:
                bank = T.Bind(T.min(b, count - 1) * ACCUMULATORS)  # behind the last block nothing is computed
                with when(b < count):
                    block = T.Bind(first + b)
                    self._emit(self._emit_products, visit.image, block, panel, last, accumulators, bank, parts > 1)
                with when(b > 0):
                    block = T.Bind(first + b - 1)
                    banks = (b - 1) * ACCUMULATORS, bank
                    self._emit(self._emit_epilogue, visit.image, block, panel, accumulators, *banks)
                with when(b == 0):
                    self._store(accumulators, 0)

    @staticmethod
    def _store(accumulators, bank) -> None:
        for tile in range(2 * PANEL):
            amx.store_tile(tile, accumulators, bank + tile * amx.ROWS * LANES)

    def _emit(self, emit, image, block, panel, *arguments) -> None:
        """`emit` one block in each of its forms: segments differ, and the last panel may be a block of channels."""
        geometry, channel_blocks = self.geometry, self.result.channel_blocks
        line, position = block // geometry.blocks_per_line, block % geometry.blocks_per_line

        def in_segment(segment: Segment, start: int, width: int) -> None:
            source = T.Bind(line * geometry.line_bytes + (position - start) * segment.source_step)
            pixel = T.Bind(line * geometry.line_pixels + (position - start) * segment.pixel_step)
            emit(_Place(image, panel, segment, source, pixel, block, width), *arguments)

        def by_segment(width: int, segments=geometry.segments, start: int = 0) -> None:
            first, *others = segments
            branch(
                position < start + first.count,
                others,
                lambda: in_segment(first, start, width),
                lambda: by_segment(width, others, start + first.count),
            )

        panels, odd = -(-channel_blocks // PANEL), channel_blocks % PANEL
        if odd and panels == 1:
            by_segment(odd)
        else:
            branch(panel < panels - 1, odd, lambda: by_segment(PANEL), lambda: by_segment(odd))

    def _emit_products(self, place: _Place, groups, accumulators=None, bank=0, resume=False) -> None:
        """The products of one block of pixels with `groups` (first, count) of a panel, on top of what `bank` holds."""
        width = place.width
        first = self.origin + place.source + self._first_channel(place.panel)
        starts = [T.Bind(first + offset) for offset in place.segment.tiles]
        weights = T.Bind(place.panel * (self.steps * PANEL * amx.TILE_BYTES))
        tiles = [m * PANEL + o for m in range(len(starts)) for o in range(width)]

        def from_bias() -> None:
            for tile in tiles:
                amx.load_tile(tile, self.bias, (place.panel * PANEL + tile % PANEL) * LANES, 0)

        def from_bank() -> None:
            for tile in tiles:
                amx.load_tile(tile, accumulators, bank + tile * amx.ROWS * LANES, amx.ROW_BYTES)

        if isinstance(resume, bool):
            (from_bank if resume else from_bias)()
        else:
            branch(resume, True, from_bank, from_bias)
        with T.serial(groups[1]) as i:
            group = T.Bind(groups[0] + i)
            step = T.Bind(weights + group * (len(self.spans) * width * amx.TILE_BYTES))
            for s, span in enumerate(self.spans):
                at = step + s * width * amx.TILE_BYTES
                self._emit_step([start + group * self.plane_bytes + span.offset for start in starts], at, width)
                self._prefetch_weights(place, at)

    def _first_channel(self, panel):
        """The first byte of a pixel that a panel reads, as an expression of its number."""
        if not any(self.reduction.starts):
            return 0
        spec = self.spec
        in_group, out_group = self.data.shape[1] // spec.groups, self.result.shape[1] // spec.groups
        start = panel * (PANEL * LANES) // out_group * in_group
        return T.min(start, self.geometry.source.pixel - self.reduction.channels)

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
        lines, chunk = PANEL * amx.TILE_BYTES // CACHE_LINE, self.knobs["chunk"]
        share, number = -(-lines // chunk), place.block % chunk
        ahead = at + self.steps * PANEL * amx.TILE_BYTES + number * (share * CACHE_LINE)
        needed = number * share < lines if chunk > lines else True
        with when(T.And(self.first_visit, needed)):
            for line in range(share):
                prefetch(self.weight, ahead + line * CACHE_LINE, into_l1=False)

    def _emit_epilogue(self, place: _Place, accumulators, bank, next_bank) -> None:
        """The epilogue of the block before, tile by tile, and behind each tile the same one of the current block."""
        for o in range(PANEL):
            if o < place.width:
                vectors = self._vectors(place, o)
            for m in range(2):
                tile = m * PANEL + o
                if o < place.width:
                    for run in place.segment.runs_of_tile(m):
                        vectors(accumulators, bank + tile * amx.ROWS * LANES, m, run)
                amx.store_tile(tile, accumulators, next_bank + tile * amx.ROWS * LANES)

    def _vectors(self, place: _Place, o: int):
        """A function that emits the epilogue of one run of pixels of the panel's block `o` of channels."""
        _, _, height, width = self.result.shape
        channels = place.panel * PANEL + o
        plane = T.Bind((place.image * self.result.channel_blocks + channels) * (height * width) + place.pixel)
        pixels = T.Bind(place.image * (height * width) + place.pixel)
        per_channel = self.epilogue.per_channel(place.image, channels)

        def emit(accumulators, tile, m: int, run: Run) -> None:
            def group(start, count: int) -> None:
                at, places = plane + run.pixel + start, []
                for i in range(count):
                    row = run.row - m * amx.ROWS + start + i
                    value = convert(load(accumulators, tile + row * LANES), "float32")
                    places.append(((at + i) * LANES, pixels + run.pixel + start + i, value))
                values = self.epilogue.run_all(per_channel, places)
                store_vectors(self.out, at * LANES, values, self.spec.output, self.cpu, self.fits_int32)

            size = side_by_side(self.spec.program)
            groups, rest = divmod(run.count, size)
            if groups:
                with T.serial(groups) as g:
                    group(g * size, size)
            if rest:
                group(groups * size, rest)

        return emit


@dataclass(frozen=True)
class _Visit:
    """What one task computes: an image, its blocks of pixels, and panels."""

    image: Any
    first_block: Any
    blocks: Any
    first_panel: Any
    panels: Any


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

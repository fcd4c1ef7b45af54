"""3x3 convolution of stride 1 in NCHW16c by Winograd's minimal filtering (`tvm_int8.winograd`).

Algorithm
    For each tile of outputs: transform its data; for each position of a transformed tile multiply by a matrix of
    weights, all input by all output channels; transform back.  Transformed u8 data are int16.  At *narrow* positions
    they are scaled, and rounded to int8 in steps that fit the tile: the largest value of its narrow positions becomes
    127.  They are stored with 128 added and multiplied by s8 (`vpdpbusd`).  At *wide* positions data are multiplied by
    s16 as they are (`vpdpwssd`): half the products per instruction, which takes twice as long on Intel's cores.

Schedule
    A *block* of tiles stays in L2 from transform to transform: its transformed data; then, for one *group* of output
    channels after the other, the products of all positions, and the results they become.  Products are computed as a
    1x1 convolution would be (see `conv2d`): `tile_width` tiles x the group's blocks of channels stay in registers over
    all input channels, and weights are packed in the order in which they are read.  int16 vectors hold sixteen channels
    of two tiles, which are transformed in all channels, then rounded.  Blocks run in parallel; or, where weights are
    much and tiles few, the transforms of a block's tiles do, and then its groups, so that each thread reads its part of
    the weights only.  Padding, and what is missing of the last tiles, is a copy of all data before; where blocks run in
    parallel, each copies what it reads.

Evidence
    Li et al. 2021, *LoWino: towards efficient low-precision Winograd convolutions on modern CPUs*, for the blocking.
    Intel Xeon (Sapphire Rapids), one thread, two `vpdpbusd` per cycle: 3x3 layers of ResNet-50, VGG by 4x4 tiles take
    1 / 2.08 of the direct kernel's time in the geometric mean, by 2x2 tiles 1 / 1.63.  Fetching the next position's
    weights takes a quarter off 512 x 512 channels, whose weights come from L3.  28 accumulators make LLVM spill one.
    On two threads copies by block gain 2 to 3 % in the mean, 10 % at 64 channels of 56x56; on one they lose up to 4 %.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8 import winograd
from tvm_int8.specs import LANES, Kernel, WinogradConv2d

from . import dot
from .cpu import Cpu
from .epilogue import Epilogue
from .knobs import KnobSpace
from .lanes import joined, store_vectors
from .padding import emit_padded_copy, emit_padded_rows
from .rule import Constants, Rule, pad_channels
from .value_range import fits_int32, winograd_accumulator_range
from .vector import KernelBuilder, Registers, branch, const, convert, fma, let, load, prefetch, scratch, store
from .winograd_knobs import Blocking, knob_space
from .winograd_transforms import (
    PAIR,
    Floats,
    Products,
    Words,
    larger,
    load_pair,
    magnitude,
    peaks_of_tiles,
    tile_multiplier,
    twice,
)

CACHE_LINE = 64
PAIRS = 2
"""Of tiles, transformed before any is rounded: what they leave in L1, and whole cache lines of results."""


class WinogradConv2dRule(Rule):
    """`WinogradConv2d` specs in NCHW16c."""

    template = "winograd_conv2d"
    version = 2

    def knob_space(self, spec: WinogradConv2d, cpu: Cpu) -> KnobSpace:
        return knob_space(spec, cpu)

    def applies(self, spec, cpu: Cpu) -> bool:
        return isinstance(spec, WinogradConv2d) and spec.inputs[0].block == spec.result.block == LANES

    def build(self, spec: WinogradConv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        return _Builder(spec, constants, cpu, knobs).build()


@dataclass(frozen=True)
class _Kind:
    """Positions that are multiplied by the same instruction.

    name : "narrow", "wide" or "plain" (float32)
    weight : name of the constant with their weights
    positions : of transformed tiles, in the order in which they are stored
    first_slot : how many positions of other kinds are stored before them
    dtype : of transformed data
    multiply_add : the instruction (see `dot`)
    """

    name: str
    weight: str
    positions: tuple[int, ...]
    first_slot: int
    dtype: str
    multiply_add: Any

    @property
    def unit(self) -> int:
        """Input channels of a word of data."""
        return self.multiply_add.vector_elements // LANES

    @property
    def starts(self) -> bool:
        """Whether sums begin with what the 128 added to data amount to."""
        return self.name == "narrow"


def _kinds(spec: WinogradConv2d, cpu: Cpu) -> list[_Kind]:
    """Those of a convolution that have positions."""
    every = range(winograd.positions(spec.tile))
    if spec.inputs[0].dtype != "uint8":
        return [_Kind("plain", "weight", tuple(every), 0, "float32", dot.Float32())]
    narrow = tuple(position for position in every if position not in spec.wide)
    kinds = [
        _Kind("narrow", "weight", narrow, 0, "uint8", dot.for_cpu(cpu)),
        _Kind("wide", "wide_weight", tuple(spec.wide), len(narrow), "int16", dot.words_for_cpu(cpu)),
    ]
    return [kind for kind in kinds if kind.positions]


@dataclass(frozen=True)
class _Source:
    """Data with their padding: whole images, or the rows that a block of tiles reads.

    buffer : [images, channel blocks, height, width, 16], or [channel blocks, height, width, 16]
    height, width : of the buffer
    first_row : of tiles, the buffer's first; None for whole images
    """

    buffer: Any
    height: int
    width: int
    first_row: Any = None


class _Builder:
    def __init__(self, spec: WinogradConv2d, constants: Constants, cpu: Cpu, knobs: dict | None):
        self.spec, self.constants, self.cpu = spec, constants, cpu
        self.data, self.result = spec.inputs[0], spec.result
        self.integer = self.data.dtype == "uint8"
        self.knobs = {"parallel": "tiles", **(knobs or knob_space(spec, cpu).heuristic)}
        self.blocking = Blocking.of(spec, self.knobs)
        self.in_blocks, self.out_blocks = self.data.channel_blocks, self.result.channel_blocks
        self.kinds = _kinds(spec, cpu)
        positions = {kind.name: kind.positions for kind in self.kinds}
        self.narrow, self.wide = positions.get("narrow", ()), positions.get("wide", ())
        self.slot = {p: slot for slot, p in enumerate(p for kind in self.kinds for p in kind.positions)}
        self.fits_int32 = self.integer and fits_int32(
            spec.program, constants, winograd_accumulator_range(spec, constants)
        )

    def build(self) -> Kernel:
        spec = self.spec
        epilogue = Epilogue(spec, self.constants)
        packed = self._packed_constants()
        with KernelBuilder(self._name()) as k:
            data, *rest = k.arguments(
                ("data", self.data.physical_shape, self.data.dtype),
                *epilogue.tensor_parameters(),
                *((name, array.shape, str(array.dtype)) for name, array in packed.items()),
                *epilogue.channel_parameters(),
                ("out", self.result.physical_shape, self.result.dtype),
            )
            operands = len(epilogue.tensor_parameters())
            epilogue.bind(rest[:operands], rest[operands + len(packed) : -1])
            self.epilogue, self.out = epilogue, rest[-1]
            self.packed: dict[str, Any] = dict(zip(packed, rest[operands:], strict=False))
            self._emit_blocks(data)
        return Kernel(k.func, (*packed.values(), *epilogue.channel_arrays()), k.name, dict(self.knobs))

    def _name(self) -> str:
        rows, columns = self.spec.tile
        form = "f32" if not self.integer else f"u8s8_{self.cpu.dot}" if self.narrow else f"s16_{self.cpu.dot}"
        mixed = f"_{len(self.wide)}s16" if self.narrow and self.wide else ""
        return f"winograd_{rows}x{columns}_{form}{mixed}"

    # Constants

    def _packed_constants(self) -> dict[str, np.ndarray]:
        """By name: weights as they are read; where sums of products start; scales; all of them by channel."""
        constants, found = self.constants, {}
        channels = self.result.shape[1]
        for kind in self.kinds:
            found[kind.weight] = self._packed(getattr(constants, kind.weight), kind)
        if self.narrow:
            found["input_scale"] = np.stack([pad_channels(s) for s in constants.input_scale])
            starts = -128 * constants.weight.sum(2, dtype=np.int32)  # what is added to data to make them u8
            found["start"] = np.stack([pad_channels(start) for start in starts])
        if self.integer:
            found["output_scale"] = np.stack([pad_channels(s) for s in constants.output_scale])
        bias = np.zeros(channels, np.float32) if constants.bias is None else constants.bias
        found["bias"] = pad_channels(bias.astype(np.float32))
        return found

    def _packed(self, weight: np.ndarray, kind: _Kind) -> np.ndarray:
        """[positions, O, C] -> groups x positions x steps x blocks of the group x vector, flat."""
        count, o, c = weight.shape
        whole = np.zeros((count, self.out_blocks * LANES, self.in_blocks * LANES), weight.dtype)
        whole[:, :o, :c] = weight
        vectors = whole.reshape(count, self.out_blocks, LANES, -1, kind.unit).transpose(1, 0, 3, 2, 4)
        group = self.knobs["oc_tile"]
        parts = [vectors[i : i + group].transpose(1, 2, 0, 3, 4) for i in range(0, self.out_blocks, group)]
        return np.concatenate([kind.multiply_add.pack(np.ascontiguousarray(part)).ravel() for part in parts])

    # Tasks

    def _pads(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right: the padding, and as much more as fills the last tiles."""
        (rows, columns), (top, left, _, _) = self.spec.tile, self.spec.padding
        blocking = self.blocking
        _, _, height, width = self.data.shape
        bottom = blocking.tile_rows * rows + 2 - top - height
        right = blocking.tile_columns * columns + 2 - left - width
        return top, left, bottom, right

    def _padded(self, data):
        """All data with their padding: buffer, height, width."""
        return emit_padded_copy(data, self.data, self._pads(), self.spec.pad_value)

    def _rows_of_block(self, data) -> _Source:
        """Those that the block's tiles read, with their padding."""
        (rows, columns), (top, left, _, right), blocking = self.spec.tile, self._pads(), self.blocking
        last = T.Bind(self.first + self.count - 1)
        first_row, last_row = T.Bind(self.first // blocking.tile_columns), T.Bind(last // blocking.tile_columns)
        alone = first_row == last_row

        def ends(y):
            """Pixels of a row: from the block's first tile, if that row of tiles is the only one to read them, ..."""
            only_first, only_last = T.Or(alone, y < (first_row + 1) * rows), T.Or(alone, y >= last_row * rows + 2)
            first = T.Select(only_first, self.first % blocking.tile_columns, 0)
            behind = T.Select(only_last, last % blocking.tile_columns + 1, blocking.tile_columns)
            return first * columns, behind * columns + 2

        span = T.Bind(first_row * rows), T.Bind((last_row - first_row + 1) * rows + 2)
        most, pads = blocking.most_tile_rows * rows + 2, (top, left, right)
        buffer, height, width = emit_padded_rows(
            data, self.data, self.image, span, most, ends, pads, self.spec.pad_value
        )
        return _Source(buffer, height, width, first_row)

    def _emit_blocks(self, data) -> None:
        by_tiles = self.knobs["parallel"] == "tiles"
        full, tail = divmod(self.out_blocks, self.knobs["oc_tile"])
        padded = any(self._pads())
        pads_blocks = padded and by_tiles and self.cpu.threads > 1
        if not pads_blocks:
            _, _, height, width = self.data.shape
            self.source = _Source(*self._padded(data)) if padded else _Source(data, height, width)
        with (T.parallel if by_tiles else T.serial)(self.data.shape[0] * self.blocking.blocks) as task:
            self.image = T.Bind(task // self.blocking.blocks)
            self.first = T.Bind(task % self.blocking.blocks * self.blocking.tiles)
            self.count = T.Bind(T.min(self.blocking.tiles, self.blocking.total - self.first))
            if pads_blocks:
                self.source = self._rows_of_block(data)
            transformed = {kind.name: self._scratch(kind) for kind in self.kinds}
            self.multipliers = scratch(self.blocking.padded_tiles, "float32") if self.narrow else None
            (self._emit_integer_data if self.integer else self._emit_float_data)(transformed)
            if by_tiles:
                products = self._products()
                if full:
                    with T.serial(full) as index:
                        self._emit_group(transformed, products, index, self.knobs["oc_tile"])
                if tail:
                    self._emit_group(transformed, products, full, tail)
            else:
                with T.parallel(full + bool(tail)) as index:
                    products = self._products()
                    emit = functools.partial(self._emit_group, transformed, products, index)
                    branch(index < full, tail, lambda: emit(self.knobs["oc_tile"]), lambda: emit(tail))

    def _products(self):
        """Room for those of a group."""
        elements = len(self.slot) * self.knobs["oc_tile"] * self.blocking.padded_tiles * LANES
        return scratch(elements, "int32" if self.integer else "float32")

    def _scratch(self, kind: _Kind):
        """Room for transformed data."""
        elements = len(kind.positions) * self.in_blocks * self.blocking.padded_tiles * LANES
        return scratch(elements, kind.dtype)

    def _corner(self, tile):
        """Row and column of a tile of the block, in tiles."""
        flat = T.Bind(self.first + tile)
        return T.Bind(flat // self.blocking.tile_columns), T.Bind(flat % self.blocking.tile_columns)

    # Data

    def _source_index(self, channel_block, tile):
        """Where the first pixel of a tile is."""
        (row, column), source = self._corner(tile), self.source
        if source.first_row is None:
            plane = self.image * self.in_blocks + channel_block
        else:
            plane, row = channel_block, row - source.first_row
        rows, columns = self.spec.tile
        return T.Bind(((plane * source.height + row * rows) * source.width + column * columns) * LANES)

    def _offsets(self) -> list[list[int]]:
        """From a tile's first pixel to each, [column][row]."""
        rows, columns = self.spec.tile
        return [[(y * self.source.width + x) * LANES for y in range(rows + 2)] for x in range(columns + 2)]

    def _emit_integer_data(self, transformed) -> None:
        """A few pairs of tiles at a time: all channels transformed, then the narrow positions rounded."""
        alone = self.knobs["parallel"] == "tiles"
        buffers = self._scaled() if alone else None
        pairs = T.Bind((self.count + 1) // 2)
        with (T.serial if alone else T.parallel)((pairs + PAIRS - 1) // PAIRS) as some:
            scaled, peaks = buffers or self._scaled()
            count = T.Bind(T.min(PAIRS, pairs - some * PAIRS))
            if self.narrow:
                with T.serial(count) as turn:
                    store(peaks, turn * PAIR, const(0, "int16", PAIR), PAIR)
            with T.serial(self.in_blocks) as channel_block, T.serial(count) as turn:
                self._emit_transform(transformed, scaled, peaks, channel_block, some * PAIRS + turn, turn)
            if self.narrow:
                with T.serial(count) as turn:
                    pair = T.Bind(some * PAIRS + turn)
                    multipliers = [tile_multiplier(peak) for peak in peaks_of_tiles(load(peaks, turn * PAIR, PAIR))]
                    for i, multiplier in enumerate(multipliers):
                        store(self.multipliers, pair * 2 + i, convert(multiplier, "float32", 1), 1)
                    both = joined([T.broadcast(convert(m, "int16", 1), LANES) for m in multipliers])
                    store(peaks, turn * PAIR, both, PAIR)
                with T.serial(self.in_blocks) as channel_block, T.serial(count) as turn:
                    both = let(load(peaks, turn * PAIR, PAIR))
                    self._emit_rounding(transformed["narrow"], scaled, both, channel_block, some * PAIRS + turn, turn)

    def _scaled(self):
        """Room for what is rounded next, and for the largest magnitudes of it."""
        if not self.narrow:
            return None, None
        return scratch(len(self.narrow) * self.in_blocks * PAIRS * PAIR, "int16"), scratch(PAIRS * PAIR, "int16")

    def _emit_transform(self, transformed, scaled, peaks, channel_block, pair, turn) -> None:
        spec, words = self.spec, Words(self.cpu)
        ends = pair * 2, T.min(pair * 2 + 1, self.count - 1)
        first, second = (self._source_index(channel_block, tile) for tile in ends)
        shift = winograd.shift(spec.tile)
        columns = [
            [load_pair(self.source.buffer, first + at, second + at, spec.pad_value, shift) for at in column]
            for column in self._offsets()
        ]
        values = winograd.transform_tile(spec.tile, columns, words)
        for slot, position in enumerate(self.wide):
            store(transformed["wide"], self._place(slot, channel_block, pair), values[position], PAIR)
        rounded = []
        for slot, position in enumerate(self.narrow):
            scale = load(self.packed["input_scale"], (slot * self.in_blocks + channel_block) * LANES)
            rounded.append(words.multiply_high(values[position], twice(scale)))
            at = ((channel_block * PAIRS + turn) * len(self.narrow) + slot) * PAIR
            store(scaled, at, rounded[-1], PAIR)
        if rounded:
            store(peaks, turn * PAIR, larger(load(peaks, turn * PAIR, PAIR), magnitude(rounded)), PAIR)

    def _emit_rounding(self, narrow, scaled, multipliers, channel_block, pair, turn) -> None:
        words, count = Words(self.cpu), len(self.narrow)
        first = (channel_block * PAIRS + turn) * count
        values = [let(load(scaled, (first + slot) * PAIR, PAIR)) for slot in range(count)]
        rounded = words.narrowed([words.multiply_high(value, multipliers) for value in values])
        for slot, value in enumerate(rounded):
            store(narrow, self._place(slot, channel_block, pair), value, PAIR)

    def _place(self, slot: int, channel_block, pair):
        """Of the transformed data of two tiles at the position in that slot."""
        tiles = self.blocking.padded_tiles
        return ((slot * self.in_blocks + channel_block) * tiles + pair * 2) * LANES

    def _emit_float_data(self, transformed) -> None:
        tiles, loop = self.blocking.padded_tiles, T.serial if self.knobs["parallel"] == "tiles" else T.parallel
        with loop(self.in_blocks) as channel_block, T.serial(self.count) as tile:
            source = self._source_index(channel_block, tile)
            columns = [[let(load(self.source.buffer, source + at)) for at in column] for column in self._offsets()]
            place = T.Bind((channel_block * tiles + tile) * LANES)
            for slot, value in enumerate(winograd.transform_tile(self.spec.tile, columns, Floats)):
                store(transformed["plain"], place + slot * self.in_blocks * tiles * LANES, value)

    # Products

    def _emit_group(self, transformed, products, index, blocks: int) -> None:
        """All positions of one group of output channels, and what becomes of them."""
        for kind in self.kinds:
            with T.serial(len(kind.positions)) as p:
                self._emit_products(kind, transformed[kind.name], products, index, p, blocks)
        for o in range(blocks):
            self._emit_results(products, index * self.knobs["oc_tile"] + o, o, blocks)

    def _emit_products(self, kind: _Kind, data, products, index, p, blocks: int) -> None:
        """One position: all tiles of the block x the group's channels, over all input channels."""
        form, unit = kind.multiply_add, kind.unit
        steps, group, tiles = LANES // unit, self.knobs["oc_tile"], self.blocking.padded_tiles
        per_position = self.in_blocks * steps * form.vector_elements
        weights = T.Bind(index * (len(kind.positions) * per_position * group) + p * (per_position * blocks))
        width, weight = self.knobs["tile_width"], self.packed[kind.weight]
        lines = CACHE_LINE // form.weight_bytes
        share = -(-per_position * blocks // lines // (tiles // width * self.in_blocks))
        with T.serial(tiles // width) as part:
            acc = Registers(blocks * width, str(products.ty.dtype))
            for o in range(blocks):
                start = self._start(kind, p, index * group + o)
                for i in range(width):
                    acc[o * width + i] = start
            first = T.Bind((p * self.in_blocks * tiles + part * width) * LANES)
            with T.serial(self.in_blocks) as c:
                self._prefetch(weight, weights + per_position * blocks, part * self.in_blocks + c, lines, share)
                for s in range(steps):
                    at = weights + (c * steps + s) * (blocks * form.vector_elements)
                    loaded = [form.load_weight(weight, at + o * form.vector_elements) for o in range(blocks)]
                    for i in range(width):
                        value = form.broadcast(data, first + (c * tiles + i) * LANES + s * unit)
                        for o in range(blocks):
                            acc[o * width + i] = form(acc[o * width + i], value, loaded[o])
            for o in range(blocks):
                target = ((p + kind.first_slot) * blocks + o) * tiles + part * width
                for i in range(width):
                    store(products, (target + i) * LANES, acc[o * width + i])

    def _prefetch(self, weight, following, turn, line: int, share: int) -> None:
        """A share of the next position's weights, so that all of them are in L2 when their turn comes."""
        if self.knobs["prefetch"] == "next":
            for i in range(share):
                prefetch(weight, following + (turn * share + i) * line)

    def _start(self, kind: _Kind, p, block):
        """What the sums of a block of output channels begin with."""
        if not kind.starts:
            return const(0, "int32" if self.integer else "float32", LANES)
        return T.Bind(load(self.packed["start"], (p * self.out_blocks + block) * LANES))

    # Results

    def _emit_results(self, products, block, o: int, blocks: int) -> None:
        """Transform the products of one block of output channels back, and run the program."""
        per_channel = self.epilogue.per_channel(self.image, block)
        self.bias = T.Bind(load(self.packed["bias"], block * LANES))
        (m_rows, m_columns), tiles = self.spec.tile, self.blocking.padded_tiles
        blocking, (_, _, height, width) = self.blocking, self.result.shape
        last = height - (blocking.tile_rows - 1) * m_rows, width - (blocking.tile_columns - 1) * m_columns
        with T.serial(self.count) as tile:
            row, column = self._corner(tile)
            if self.narrow:
                multiplier = T.Bind(load(self.multipliers, tile, 1))
                gain = let(T.broadcast(T.float32(2.0**15) / multiplier, LANES))
                share = let(T.broadcast(multiplier * T.float32(2.0**-15), LANES))
            else:
                gain = share = None

            def product(position: int):
                place = ((self.slot[position] * blocks + o) * tiles + tile) * LANES
                value = load(products, place)
                if not self.integer:
                    return let(value)
                scale = load(self.packed["output_scale"], (position * self.out_blocks + block) * LANES)
                if self.narrow and position in self.spec.wide:  # results are divided by the multiplier
                    scale = scale * share
                return let(convert(value, "float32")), let(scale)

            ops = Products if self.integer else Floats
            values = winograd.transform_products(self.spec.tile, product, ops, Floats)
            values = [[self._accumulator(value, gain) for value in row] for row in values]
            corner = T.Bind(row * (m_rows * width) + column * m_columns)

            def emit(rows: int, count: int) -> None:
                for y in range(rows):
                    self._emit_row(per_channel, block, corner + y * width, values[y][:count])

            def by_column(rows: int) -> None:
                branch(
                    column < blocking.tile_columns - 1,
                    last[1] < m_columns,
                    lambda: emit(rows, m_columns),
                    lambda: emit(rows, last[1]),
                )

            branch(
                row < blocking.tile_rows - 1, last[0] < m_rows, lambda: by_column(m_rows), lambda: by_column(last[0])
            )

    def _accumulator(self, value, gain):
        """What the program starts from."""
        return let(value + self.bias if gain is None else fma(value, gain, self.bias))

    def _emit_row(self, per_channel, block, pixel, values) -> None:
        _, _, height, width = self.result.shape
        plane = self.image * self.out_blocks + block
        first = T.Bind((plane * (height * width) + pixel) * LANES)
        places = [
            (first + i * LANES, self.image * (height * width) + pixel + i, value) for i, value in enumerate(values)
        ]
        finished = self.epilogue.run_all(per_channel, places)
        store_vectors(self.out, first, finished, self.spec.output, self.cpu, self.fits_int32)

"""How a convolution becomes products of AMX tiles: where data, pixels and weights lie.

The data are copied once, pixel-major, with their padding: [N, groups, H, W, P bytes] (`Source`).  P is 64 where
channels come in 64s, and all channels otherwise.  Images of 4 bytes per pixel put `rows` of them below each other into
one, so that a line of the copy holds several kernel rows.  A row of a data tile is then 64 neighbouring bytes, the
channels of one pixel or of a few neighbours, which are taps of the same kernel row:

    out[pixel, o] = bias[o] + sum over groups, spans of data[address of the pixel + span][64] * weight[o][64]

The *spans* of a kernel row cover its kw * P contiguous bytes in 64s (weights behind the end are zero); where taps are
dilated, or an output channel reads only some channels, they cover the bytes of every tap.  Sixteen rows of a tile are
sixteen pixels a fixed distance apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvm_int8.specs import LANES, Conv2d

from . import amx

PANEL = 2  # blocks of 16 output channels computed together
BLOCK = 2 * amx.ROWS  # pixels computed together
IMAGE = 4  # channel block of images
MOST_JOINED_TILES = 8  # each block of a map of joined lines has code of its own


@dataclass(frozen=True)
class Source:
    """The pixel-major copy: [n, groups, height, width, pixel bytes].

    step : the data's rows and columns from one line and pixel to the next
    rows : the data's rows that a line holds
    """

    groups: int
    height: int
    width: int
    pixel: int
    step: tuple[int, int] = (1, 1)
    rows: int = 1

    @property
    def line_bytes(self) -> int:
        return self.width * self.pixel

    @property
    def plane_bytes(self) -> int:
        return self.height * self.line_bytes


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
        """With stride 1, small maps are one long row, line ends included, whose products nobody reads."""
        _, _, height, width = spec.result.shape
        if reads_single_pixels(spec):
            source = Source(_groups(spec), 1, height * width, _pixel(spec), spec.strides)
            return Geometry(source, source.pixel, _long_line(height * width, source.pixel))
        source, strides = _padded_source(spec)
        row, line = strides[1] * source.pixel, strides[0] * source.line_bytes
        joined = -(-((height - 1) * source.width + width) // amx.ROWS)
        if strides == (1, 1) and joined <= MOST_JOINED_TILES and joined < height * -(-width // amx.ROWS):
            return Geometry(source, row, _joined_lines(height, width, source.width, source.pixel))
        if width <= amx.ROWS:
            return Geometry(source, row, _pairs_of_lines(height, width, line))
        return Geometry(source, row, _long_line(width, row), height, line, width)


def reads_single_pixels(spec: Conv2d) -> bool:
    """Whether an output pixel is made of one pixel of the data, so that only those are copied."""
    return spec.kernel == (1, 1) and not any(spec.padding)


def _groups(spec: Conv2d) -> int:
    return max(1, spec.inputs[0].shape[1] // amx.ROW_BYTES) if _pixel(spec) == amx.ROW_BYTES and spec.groups == 1 else 1


def _pixel(spec: Conv2d) -> int:
    channels, block = spec.inputs[0].shape[1], spec.inputs[0].block
    if spec.groups == 1 and channels % amx.ROW_BYTES == 0 and block == LANES:
        return amx.ROW_BYTES
    return -(-channels // block) * block


def stacked_rows(spec: Conv2d) -> int:
    """How many rows of an image lie below each other in a line: what makes the fewest spans."""
    if spec.inputs[0].block != IMAGE or spec.dilation[0] > 1 or spec.inputs[0].shape[3] < LANES:
        return 1
    kh, kw = spec.kernel
    return min(range(1, 5), key=lambda rows: (-(-kh // rows) * -(-kw * IMAGE * rows // amx.ROW_BYTES), rows))


def _padded_source(spec: Conv2d) -> tuple[Source, tuple[int, int]]:
    """The source, and its lines and pixels from one output pixel to the next."""
    _, _, height, width = spec.result.shape
    (kh, kw), (sy, sx), (dy, dx) = spec.kernel, spec.strides, spec.dilation
    columns, rows = (width - 1) * sx + (kw - 1) * dx + 1, stacked_rows(spec)
    if rows == 1:
        return Source(_groups(spec), (height - 1) * sy + (kh - 1) * dy + 1, columns, _pixel(spec)), (sy, sx)
    step = sy if rows >= kh else math.gcd(sy, rows)
    lines = ((height - 1) * sy + (-(-kh // rows) - 1) * rows) // step + 1
    columns = max(columns, spec.padding[1] + spec.inputs[0].shape[3])  # copied in whole vectors
    return Source(1, lines, columns, IMAGE * rows, (step, 1), rows), (sy // step, sx)


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
    """64 bytes of the reduction: where they lie, and which taps and channels they are.

    row, tap : kernel row, and tap in it where taps do not lie side by side
    offset : bytes from the pixel the tile begins with
    first : first byte within the kernel row's taps (all of them, or the one)
    """

    row: int
    tap: int | None
    offset: int
    first: int


@dataclass(frozen=True)
class Reduction:
    """What is summed up: the spans of one group, and the channels a panel of output channels begins with.

    channels : how many of a pixel's bytes a panel reads
    starts : the first of them, per panel
    """

    spans: tuple[Span, ...]
    channels: int
    starts: tuple[int, ...]

    @staticmethod
    def of(spec: Conv2d, source: Source) -> Reduction:
        (kh, kw), (dy, dx), rows = spec.kernel, spec.dilation, source.rows
        panels = -(-spec.result.channel_blocks // PANEL)
        channels, starts = source.pixel, (0,) * panels
        if spec.groups > 1:
            channels, starts = _channels_of_panels(spec, source.pixel, panels)
        spans = []
        for i in range(-(-kh // rows)):
            line = i * (rows // source.step[0] if rows > 1 else dy) * source.line_bytes
            if spec.groups == 1 and (dx == 1 or kw == 1):
                firsts = range(0, kw * source.pixel, amx.ROW_BYTES)
                spans += [Span(i, None, line + first, first) for first in firsts]
            else:
                firsts = range(0, channels, amx.ROW_BYTES)
                spans += [Span(i, j, line + j * dx * source.pixel + f, f) for j in range(kw) for f in firsts]
        return Reduction(tuple(spans), channels, starts)


def _channels_of_panels(spec: Conv2d, pixel: int, panels: int) -> tuple[int, tuple[int, ...]]:
    """Of a grouped convolution: how many channels a panel needs at most, and the first of each."""
    out_channels = spec.result.shape[1]
    in_group, out_group = spec.inputs[0].shape[1] // spec.groups, out_channels // spec.groups
    ranges = []
    for panel in range(panels):
        first, last = panel * PANEL * LANES, min((panel + 1) * PANEL * LANES, out_channels) - 1
        ranges.append((first // out_group * in_group, (last // out_group + 1) * in_group))
    length = max(high - low for low, high in ranges)
    return length, tuple(min(low, pixel - length) for low, _ in ranges)


def packed_weight(spec: Conv2d, weight: np.ndarray, source: Source, reduction: Reduction) -> np.ndarray:
    """Weight tiles in reading order: panels x groups x spans x blocks of the panel x [16][16][4], int8, flat."""
    dense = _dense_weight(spec, weight, source)  # output block, output channel, group, byte, kernel row, tap
    blocks, groups, spans = len(dense), source.groups, reduction.spans
    tiles = np.zeros((blocks, groups, len(spans), amx.ROW_BYTES, LANES), np.int8)
    for block in range(blocks):
        start = reduction.starts[block // PANEL]
        read = dense[block, :, :, start : start + reduction.channels].transpose(1, 3, 4, 2, 0)
        for s, span in enumerate(spans):
            taps = read[:, span.row] if span.tap is None else read[:, span.row, span.tap : span.tap + 1]
            row = taps.reshape(groups, -1, LANES)[:, span.first : span.first + amx.ROW_BYTES]
            tiles[block, :, s, : row.shape[1]] = row
    tiles = tiles.reshape(blocks, groups * len(spans), LANES, 4, LANES).transpose(0, 1, 2, 4, 3)
    return np.concatenate([tiles[i : i + PANEL].swapaxes(0, 1).ravel() for i in range(0, blocks, PANEL)])


def _dense_weight(spec: Conv2d, weight: np.ndarray, source: Source) -> np.ndarray:
    """Weights of all channels, zeros where groups differ; kernel rows that share a line are channels."""
    (out_channels, in_group, kh, kw), groups = weight.shape, spec.groups
    blocks = -(-out_channels // LANES)
    dense = np.zeros((blocks * LANES, source.groups * source.pixel // source.rows, kh, kw), np.int8)
    out_group = out_channels // groups
    for g in range(groups):
        rows = slice(g * out_group, (g + 1) * out_group)
        dense[rows, g * in_group : (g + 1) * in_group] = weight[rows]
    if source.rows > 1:
        dense = np.pad(dense, ((0, 0), (0, 0), (0, -kh % source.rows), (0, 0)))
        dense = dense.reshape(blocks * LANES, IMAGE, -1, source.rows, kw).transpose(0, 3, 1, 2, 4)
        dense = dense.reshape(blocks * LANES, source.pixel, -1, kw)
    return dense.reshape(blocks, LANES, source.groups, source.pixel, *dense.shape[2:])

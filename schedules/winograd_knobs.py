"""Knobs of Winograd convolution (see `winograd_conv2d`).

tiles        tiles of a block, which stay in L2 from transform to transform
tile_width   tiles whose products with a group of output channels stay in registers
oc_tile      blocks of 16 output channels in a group
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm_int8 import winograd
from tvm_int8.specs import LANES, WinogradConv2d

from .cpu import Cpu
from .knobs import Knobs, KnobSpace


@dataclass(frozen=True)
class Blocking:
    """How the tiles of a map are divided.

    tile_rows, tile_columns : tiles of an image
    tiles : of a block
    padded_tiles : the same, filled up to whole widths
    """

    tile_rows: int
    tile_columns: int
    tiles: int
    padded_tiles: int

    @staticmethod
    def of(spec: WinogradConv2d, knobs: Knobs) -> Blocking:
        rows, columns = tile_counts(spec)
        tiles, width = knobs["tiles"], knobs["tile_width"]
        even = max(width, 2)  # data are transformed two tiles at a time
        padded = -(-tiles // width) * width
        return Blocking(rows, columns, tiles, padded + (padded % 2) * (width if even % 2 else 0))

    @property
    def total(self) -> int:
        """Tiles of an image."""
        return self.tile_rows * self.tile_columns

    @property
    def blocks(self) -> int:
        """Blocks of an image."""
        return -(-self.total // self.tiles)


def tile_counts(spec: WinogradConv2d) -> tuple[int, int]:
    """Tiles in a column and in a row of an image."""
    (rows, columns), (_, _, height, width) = spec.tile, spec.result.shape
    return -(-height // rows), -(-width // columns)


def knob_space(spec: WinogradConv2d, cpu: Cpu) -> KnobSpace:
    """The knobs of a Winograd convolution on a CPU."""
    rows, columns = tile_counts(spec)
    total, blocks = rows * columns, spec.result.channel_blocks
    tiles = min(total, 56)
    tiles = -(-total // -(-total // tiles))
    oc = min(blocks, 2)
    most = 28 // oc
    width = -(-tiles // -(-tiles // most))
    return KnobSpace({"tiles": tiles, "tile_width": width, "oc_tile": oc})

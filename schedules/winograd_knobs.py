"""Knobs of Winograd convolution (see `winograd_conv2d`).

tiles        tiles of a block, which stay in L2 from transform to transform
tile_width   tiles whose products with a group of output channels stay in registers
oc_tile      blocks of 16 output channels in a group
prefetch     whether the weights of the next position are fetched into L2 meanwhile: "next" or "none"
parallel     what runs in parallel: blocks of "tiles", or a block's groups of "outputs"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm_int8 import winograd
from tvm_int8.specs import LANES, WinogradConv2d

from .cpu import Cpu
from .knobs import Knobs, KnobSpace

MOST_TILES = 128
WIDEST_GROUP = 6
NEAR_BYTES = 48.0
"""Read from L2 per instruction."""
FAR_BYTES = 6.0
"""Of weights that do not stay in L2, read per instruction."""
SHARED_BYTES = 0.3
"""Of data that another core has transformed, read per instruction."""
LAUNCH = 100_000.0
"""Of a parallel loop, until all threads are at it, in instructions."""


@dataclass(frozen=True)
class Blocking:
    """How the tiles of a map are divided.

    tile_rows, tile_columns : tiles of an image
    tiles : of a block
    padded_tiles : the same, filled up to whole widths, and to an even number: data are transformed two at a time
    """

    tile_rows: int
    tile_columns: int
    tiles: int
    padded_tiles: int

    @staticmethod
    def of(spec: WinogradConv2d, knobs: Knobs) -> Blocking:
        rows, columns = tile_counts(spec)
        return Blocking(rows, columns, knobs["tiles"], padded_tiles(knobs["tiles"], knobs["tile_width"]))

    @property
    def total(self) -> int:
        """Tiles of an image."""
        return self.tile_rows * self.tile_columns

    @property
    def blocks(self) -> int:
        """Blocks of an image."""
        return -(-self.total // self.tiles)

    @property
    def most_tile_rows(self) -> int:
        """Rows of tiles, at most, in which a block has tiles."""
        ends = ((first, min(first + self.tiles, self.total) - 1) for first in range(0, self.total, self.tiles))
        return max(last // self.tile_columns - first // self.tile_columns + 1 for first, last in ends)


def tile_counts(spec: WinogradConv2d) -> tuple[int, int]:
    """Tiles in a column and in a row of an image."""
    (rows, columns), (_, _, height, width) = spec.tile, spec.result.shape
    return -(-height // rows), -(-width // columns)


def padded_tiles(tiles: int, width: int) -> int:
    """The least even multiple of `width` that holds `tiles`."""
    return -(-tiles // width) * width if width % 2 == 0 else -(-tiles // (2 * width)) * 2 * width


def knob_space(spec: WinogradConv2d, cpu: Cpu) -> KnobSpace:
    """The knobs of a Winograd convolution on a CPU."""
    model = _Model(spec, cpu)
    choices = {
        "tiles": model.block_sizes(),
        "tile_width": tuple(range(1, model.limit(1) + 1)),
        "oc_tile": tuple(range(1, min(spec.result.channel_blocks, WIDEST_GROUP) + 1)),
        "prefetch": ("none", "next"),
        "parallel": model.parallel(),
    }
    return KnobSpace(model.heuristic(), choices, model.is_valid, model.estimate, model.features)


class _Model:
    def __init__(self, spec: WinogradConv2d, cpu: Cpu):
        self.spec, self.cpu = spec, cpu
        rows, columns = tile_counts(spec)
        self.total, self.images = rows * columns, spec.inputs[0].shape[0]
        self.in_blocks, self.out_blocks = spec.inputs[0].channel_blocks, spec.result.channel_blocks
        self.positions, self.wide = winograd.positions(spec.tile), len(spec.wide)
        self.element = 1 if spec.inputs[0].dtype == "uint8" else 4
        self.registers = cpu.vector_registers * cpu.vector_bits // 512

    def limit(self, oc_tile: int) -> int:
        """Tiles that fit registers beside the weights and three data words; with two, LLVM spills an accumulator."""
        return max(1, (self.registers - 3 - oc_tile) // oc_tile)

    def block_sizes(self) -> tuple[int, ...]:
        """Sizes that divide an image's tiles into blocks of about the same size."""
        sizes = {-(-self.total // blocks) for blocks in range(1, self.total + 1)}
        return tuple(sorted(size for size in sizes if size <= MOST_TILES))

    def parallel(self) -> tuple[str, ...]:
        """What can run in parallel."""
        return ("tiles", "outputs") if self.cpu.threads > 1 else ("tiles",)

    def is_valid(self, knobs: Knobs) -> bool:
        width, tiles = knobs["tile_width"], knobs["tiles"]
        return width <= min(self.limit(knobs["oc_tile"]), tiles + tiles % 2)

    def heuristic(self) -> Knobs:
        """The point of which the model expects most."""
        return min(self._points(), key=self.estimate)

    def _points(self) -> Iterator[Knobs]:
        prefetch = "next" if self._weight_bytes() > self.cpu.l2_bytes // 4 else "none"
        for tiles in self.block_sizes():
            for oc_tile in range(1, min(self.out_blocks, WIDEST_GROUP) + 1):
                most = min(self.limit(oc_tile), tiles + tiles % 2)
                for width in {most, -(-tiles // -(-tiles // most))} if most > 0 else ():
                    for parallel in self.parallel():
                        sizes = {"tiles": tiles, "tile_width": width, "oc_tile": oc_tile}
                        yield {**sizes, "prefetch": prefetch, "parallel": parallel}

    def _weight_bytes(self) -> int:
        return (self.positions + self.wide) * self.in_blocks * self.out_blocks * LANES**2 * self.element

    def _block_bytes(self, knobs: Knobs) -> int:
        """Of a block's transformed data and products."""
        data = (self.positions + self.wide) * self.in_blocks * self.element
        return padded_tiles(knobs["tiles"], knobs["tile_width"]) * LANES * (data + self._product_bytes(knobs))

    def _product_bytes(self, knobs: Knobs) -> int:
        return self.positions * knobs["oc_tile"] * 4

    def estimate(self, knobs: Knobs) -> float:
        """Instructions on a port that multiplies, roughly, of all products, by thread."""
        tiles, width, oc_tile = knobs["tiles"], knobs["tile_width"], knobs["oc_tile"]
        blocks = -(-self.total // tiles)
        padded = padded_tiles(tiles, width)
        accumulators = width * oc_tile
        loads = 1 / width + 1 / oc_tile
        per_product = max(1.0, 10 / accumulators) + 0.3 * max(0.0, loads - 0.6)
        groups = -(-self.out_blocks // oc_tile)
        steps = (self.positions + self.wide) * self.in_blocks * LANES * self.element / 4
        products = blocks * padded * groups * oc_tile * steps * per_product
        # registers are begun and put away, and the next tiles' products wait for it
        starts = blocks * (padded / width) * groups * self.positions * (2 * accumulators + 16)
        beyond = max(0, self._weight_bytes() - self.cpu.l2_bytes // 2)
        reading = blocks * beyond / FAR_BYTES
        spilled = max(0.0, self._block_bytes(knobs) / (0.3 * self.cpu.l2_bytes) - 1)
        # every group reads all data again, and every block all weights, from L2
        transformed = padded * LANES * self.in_blocks * (self.positions + self.wide) * self.element
        again = blocks * (groups * transformed + self._weight_bytes()) / NEAR_BYTES
        each = self.images * (products * (1 + 0.1 * min(spilled, 3)) + starts + reading + again)
        threads = self.cpu.threads
        if knobs["parallel"] == "tiles":
            tasks = self.images * blocks
            return each * (-(-tasks // threads) * threads / tasks)
        shared = blocks * transformed * (threads - 1) / threads / SHARED_BYTES
        most = -(-groups // threads) * threads * oc_tile  # of blocks of channels, if all threads had the largest share
        return each * (most / self.out_blocks) + self.images * (shared + blocks * LAUNCH)

    def features(self, knobs: Knobs) -> dict[str, float]:
        return {
            "estimate": self.estimate(knobs),
            "accumulators": knobs["tile_width"] * knobs["oc_tile"],
            "padded_tiles": padded_tiles(knobs["tiles"], knobs["tile_width"]),
            "block_bytes": self._block_bytes(knobs),
            "weight_bytes": self._weight_bytes(),
        }

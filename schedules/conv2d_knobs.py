"""Knobs of the direct convolution (see `conv2d`).

ow_tile, oc_tile   pixels x blocks of 16 output channels that stay in registers over the whole reduction
pixels             "row": tiles end where rows end; "map": a 1x1 convolution is one product of matrices over all pixels
order              "channels": a thread meets all pixels with the weights of one tile of output channels, then goes on
                   to the next; "rows": it meets a row of pixels with all weights, then goes on to the next row
unroll             reduction steps written out in the innermost loop
prefetch           what is fetched into L2 meanwhile: "none", the weights of the "next" tile, or those a few lines
                   ahead ("stream", for tiles whose weights are read once)
"""

from __future__ import annotations

import math

import numpy as np

from tvm_int8.specs import LANES, Conv2d

from . import dot
from .conv2d_geometry import Geometry, Reduction, can_be_flat
from .cpu import Cpu
from .knobs import Knobs, KnobSpace

MOST_REUSES = 64  # tiles with the same weights up to which the next weights are fetched ahead: more hide it anyway
MOST_UNROLLED = 4
FEW_ACCUMULATORS = 20  # in loops over single steps, if there are few taps: LLVM unrolls them, and spills beyond this
FEW_TAPS = 25
LONG_TILE = 16  # pixels, beyond which a single block of output channels gains nothing and its epilogue spills


def knob_space(spec: Conv2d, cpu: Cpu) -> KnobSpace:
    """The knobs of a convolution on a CPU."""
    model = _Model(spec, cpu)
    choices = {
        "pixels": tuple(model.geometries),
        "ow_tile": model.ow_tiles(),
        "oc_tile": tuple(range(1, min(spec.result.channel_blocks, LANES) + 1)),
        "order": ("channels", "rows"),
        "unroll": tuple(sorted({math.gcd(model.reduction.inner, n) for n in (1, 2, 4, 8)})),
        "prefetch": ("none", "next", "stream"),
    }
    return KnobSpace(model.heuristic(), choices, model.is_valid, model.estimate, model.features)


def _tiles(total: int, size: int) -> list[tuple[int, int]]:
    """(size of a tile, how many): full ones, and the last one where that is smaller."""
    full, rest = divmod(total, size)
    return [(size, full)] * (full > 0) + [(rest, 1)] * (rest > 0)


class _Model:
    def __init__(self, spec: Conv2d, cpu: Cpu):
        self.spec, self.cpu = spec, cpu
        self.blocks = spec.result.channel_blocks
        self.registers = cpu.vector_registers * cpu.vector_bits // 512
        forms = ("map", "row") if can_be_flat(spec) and spec.result.shape[2] > 1 else ("row",)
        self.geometries = {form: Geometry.of(spec, flat=form == "map") for form in forms}
        self.integer = spec.inputs[0].dtype == "uint8"
        multiply_add = dot.direct_for_cpu(cpu) if self.integer else dot.Float32()
        self.reduction, self.temporaries = Reduction.of(spec, multiply_add.unit), multiply_add.temporaries
        self.vector_bytes = multiply_add.vector_elements * multiply_add.weight_bytes
        self.data_bytes = math.prod(spec.inputs[0].physical_shape[1:]) * np.dtype(spec.inputs[0].dtype).itemsize

    def limit(self, oc_tile: int) -> int:
        """Pixels that fit registers beside the weights, one data word and what is yet to be added."""
        return (self.registers - 1 - self.temporaries - oc_tile) // oc_tile

    def ow_tiles(self) -> tuple[int, ...]:
        """Widths that cut some row into tiles of about the same size."""
        widths = {geometry.columns for geometry in self.geometries.values()}
        most = self.limit(1)
        even = {-(-width // tiles) for width in widths for tiles in range(1, width + 1)}
        return tuple(sorted(n for n in even | set(range(most // 2, most + 1)) if n <= min(most, max(widths))))

    def is_valid(self, knobs: Knobs) -> bool:
        ow_tile, oc_tile, width = knobs["ow_tile"], knobs["oc_tile"], self.geometries[knobs["pixels"]].columns
        if ow_tile > min(width, self.limit(oc_tile)):
            return False  # registers would be spilled
        starts = self.reduction.starts
        if any(len(set(starts[i : i + oc_tile])) > 1 for i in range(0, self.blocks, oc_tile)):
            return False  # a tile must read one range of input channels
        if knobs["order"] == "rows" and oc_tile >= self.blocks:
            return False  # the same as "channels"
        return knobs["prefetch"] != "stream" or self._reuses(knobs) == 1

    def heuristic(self) -> Knobs:
        """The tile with the fewest loads per multiply-add that fits the registers, and what goes with it."""
        form = next(iter(self.geometries))
        width = self.geometries[form].columns
        best = None
        for oc_tile in range(1, min(self.blocks, LANES) + 1):
            limit = self.limit(oc_tile)
            if limit < 1:
                break
            for most in {limit, *(min(limit, max(1, few // oc_tile)) for few in (FEW_ACCUMULATORS, LONG_TILE))}:
                ow_tile = -(-width // -(-width // most))
                knobs = {
                    "pixels": form,
                    "ow_tile": ow_tile,
                    "oc_tile": oc_tile,
                    "order": "channels",
                    "prefetch": "none",
                }
                cost = self.estimate(knobs)
                if self.is_valid(knobs) and (best is None or cost < best[0]):
                    best = (cost, knobs)
        knobs = best[1]
        unroll = math.gcd(self.reduction.inner, MOST_UNROLLED)
        return knobs | {"order": self._order(knobs), "unroll": unroll, "prefetch": self._prefetch(knobs)}

    def _order(self, knobs: Knobs) -> str:
        """By rows where all weights fit a quarter of L2, and data do not fit half of it."""
        tiles = -(-self.blocks // knobs["oc_tile"])
        small_weights = tiles * self._tile_weight_bytes(knobs) <= self.cpu.l2_bytes // 4
        by_rows = small_weights and self.data_bytes > self.cpu.l2_bytes // 2 and tiles > 1
        return "rows" if by_rows else "channels"

    def _prefetch(self, knobs: Knobs) -> str:
        reuses, tile_bytes = self._reuses(knobs), self._tile_weight_bytes(knobs)
        both_fit = 2 * tile_bytes <= self.cpu.l2_bytes
        if reuses == 1:
            return "stream"
        return "next" if reuses <= MOST_REUSES and (self.integer or both_fit) else "none"

    def _reuses(self, knobs: Knobs) -> int:
        """Tiles of pixels that meet one tile of weights, per image."""
        y, x = self.geometries[knobs["pixels"]].phases[0]
        return y.count * -(-x.count // knobs["ow_tile"])

    def _tile_weight_bytes(self, knobs: Knobs) -> int:
        y, x = self.geometries[knobs["pixels"]].phases[0]
        steps = self.reduction.length * len(y.taps) * len(x.taps)
        return steps * knobs["oc_tile"] * self.vector_bytes

    def estimate(self, knobs: Knobs) -> float:
        """Cycles per multiply-add, roughly, in units of what registers full of accumulators allow."""
        ow_tile, oc_tile = knobs["ow_tile"], knobs["oc_tile"]
        width = self.geometries[knobs["pixels"]].columns
        cycles = sum(
            pixels * blocks * self._cycles(pixels, blocks) * rows * columns
            for pixels, columns in _tiles(width, ow_tile)
            for blocks, rows in _tiles(self.blocks, oc_tile)
        )
        # weights come from L2, data from L1: a tie goes to the tile that loads fewer weights
        return cycles / (width * self.blocks) + 0.05 * (2 / ow_tile + 0.5 / oc_tile)

    def _cycles(self, pixels: int, blocks: int) -> float:
        """Of a tile, per multiply-add."""
        loads = 1 / pixels + 1 / blocks  # per multiply-add; many CPUs load less often than they multiply
        idle = max(1.0, 10 / (pixels * blocks))  # ten accumulators hide the latency of two instructions per cycle
        unrolled = self.reduction.inner == 1 and self.spec.kernel[0] * self.spec.kernel[1] <= FEW_TAPS
        spilled = max(0, pixels * blocks - FEW_ACCUMULATORS) if unrolled else 0
        long = 1.1 if blocks == 1 and pixels > LONG_TILE else 1.0
        return max(idle, 1.0 + 0.6 * max(0.0, loads - 0.6)) * (1 + 0.05 * spilled) * long

    def features(self, knobs: Knobs) -> dict[str, float]:
        ow_tile, oc_tile = knobs["ow_tile"], knobs["oc_tile"]
        return {
            "estimate": self.estimate(knobs),
            "accumulators": ow_tile * oc_tile,
            "loads": 1 / ow_tile + 1 / oc_tile,
            "reuses": self._reuses(knobs),
            "tile_weight_bytes": self._tile_weight_bytes(knobs),
            "tiles": -(-self.blocks // oc_tile),
        }

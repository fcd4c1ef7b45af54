"""Knobs of the convolution on AMX (see `conv2d_amx`).

order          "pixels": a chunk of blocks of pixels meets its panels, then the next chunk comes; "channels": images and
               chunks inside panels, which are read once for all images
chunk, panels  blocks of 32 pixels and panels of 32 output channels of one task; inside, blocks run innermost
strip, part    blocks that a part of a panel, counted in groups of 64 input channels, serves before the next part;
               0: a block meets a whole panel at once
"""

from __future__ import annotations

from tvm_int8.specs import Conv2d

from . import amx
from .amx_geometry import PANEL, Geometry, Reduction
from .cpu import Cpu
from .knobs import Knobs, KnobSpace

CHUNK_BYTES = 16 << 10  # of data that stay in L1 while panels pass
PART_BYTES = 18 << 10  # of a panel that stay in L1 while a strip of blocks passes
STRIP = 4
L2_BYTES_PER_CYCLE = 40
DIVISORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def knob_space(spec: Conv2d, cpu: Cpu) -> KnobSpace:
    """The knobs of a convolution on a CPU with AMX."""
    model = _Model(spec, cpu)
    groups = model.groups
    choices = {
        "order": ("pixels", "channels"),
        "chunk": tuple(sorted({-(-model.blocks // n) for n in DIVISORS})),
        "panels": tuple(sorted({-(-model.panels // n) for n in DIVISORS})),
        "strip": (0, 1, 2, 3, 4, 8) if model.can_strip else (0,),
        "part": tuple(sorted({0, *(-(-groups // n) for n in (2, 3, 4, 6, 8, 16))})) if model.can_strip else (0,),
    }
    return KnobSpace(model.heuristic(), choices, model.is_valid, model.estimate, model.features)


class _Model:
    def __init__(self, spec: Conv2d, cpu: Cpu):
        geometry = Geometry.of(spec)
        self.cpu, self.images, self.groups = cpu, spec.inputs[0].shape[0], geometry.source.groups
        self.blocks, self.panels = geometry.blocks, -(-spec.result.channel_blocks // PANEL)
        self.spans = len(Reduction.of(spec, geometry.source).spans)
        self.panel_bytes = self.groups * self.spans * PANEL * amx.TILE_BYTES
        self.weight_bytes = self.groups * self.spans * amx.TILE_BYTES * spec.result.channel_blocks
        self.data_bytes = self.groups * geometry.source.plane_bytes
        self.can_strip = self.spans > 1 and self.groups > 1

    def is_valid(self, knobs: Knobs) -> bool:
        strip, part = knobs["strip"], knobs["part"]
        if (strip > 0) != (part > 0) or strip > knobs["chunk"] or part >= max(self.groups, 2):
            return False  # the whole panel at once is strip 0
        tasks = self.images * -(-self.blocks // knobs["chunk"]) * -(-self.panels // knobs["panels"])
        return tasks >= min(self.cpu.threads, self.images * self.blocks * self.panels)

    def heuristic(self) -> Knobs:
        """Either all panels are read for every chunk, or all pixels for every panel: whichever reads less from L2."""
        cpu = self.cpu
        part_bytes = self.spans * PANEL * amx.TILE_BYTES
        strip, part = STRIP, max(1, PART_BYTES // part_bytes)
        if not self.can_strip or self.panel_bytes <= 2 * PART_BYTES:
            strip = part = 0
        per_block = max(1, self.data_bytes // self.blocks)
        chunk = min(self.blocks, max(1, CHUNK_BYTES // per_block))
        chunks = -(-self.blocks // chunk)
        if self.weight_bytes <= cpu.l2_bytes // 2 and self.weight_bytes * chunks <= self.data_bytes * self.panels:
            chunks = max(chunks, min(self.blocks, 4 * cpu.threads if cpu.threads > 1 else 1))
            chunk = -(-self.blocks // chunks)
            return {"order": "pixels", "chunk": chunk, "panels": self.panels, "strip": min(strip, chunk), "part": part}
        parts = 1
        if cpu.threads > 1 and self.panels % cpu.threads and self.panels < 8 * cpu.threads:
            parts = min(self.blocks, 2 * cpu.threads)
        chunk = -(-self.blocks // parts)
        return {"order": "channels", "chunk": chunk, "panels": 1, "strip": min(strip, chunk), "part": part}

    def _l2_bytes(self, knobs: Knobs) -> float:
        """Read from L2 where what is met again does not stay in L1."""
        chunk_bytes = knobs["chunk"] * self.data_bytes / self.blocks
        chunks, groups = -(-self.blocks // knobs["chunk"]), -(-self.panels // knobs["panels"])
        weights = self.weight_bytes * chunks * (1 if knobs["strip"] or self.panel_bytes <= self.cpu.l1_bytes else 4)
        data = self.data_bytes * (groups if chunk_bytes <= self.cpu.l1_bytes else self.panels)
        return weights + data

    def estimate(self, knobs: Knobs) -> float:
        """Cycles of the tiles' products and of reading from L2, as if half of these were hidden."""
        products = self.blocks * self.panels * self.groups * self.spans * 64
        threads = min(self.cpu.threads, -(-self.blocks // knobs["chunk"]) * -(-self.panels // knobs["panels"]))
        return (1 + 0.5 * self._l2_bytes(knobs) / L2_BYTES_PER_CYCLE / products) / threads

    def features(self, knobs: Knobs) -> dict[str, float]:
        return {
            "estimate": self.estimate(knobs),
            "chunk_bytes": knobs["chunk"] * self.data_bytes / self.blocks,
            "group_bytes": knobs["panels"] * self.panel_bytes,
            "part_bytes": knobs["part"] * self.panel_bytes / self.groups,
            "chunks": -(-self.blocks // knobs["chunk"]),
            "groups": -(-self.panels // knobs["panels"]),
            "l2_bytes": self._l2_bytes(knobs),
        }

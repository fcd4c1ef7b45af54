"""The SQNR that a choice of widths will measure, foretold: noises of layers added up, and what layers do together.

Alone, a layer's noise is what it is in a float network. Together they are less, where weights are rounded in order and
make good what layers in front of them lost (`weights_in_order`), or more, where noises are too large to add up. How
much, hardly depends on the widths as long as these are few; it is measured with the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tvm_int8.quantization.bit_allocator import BitAllocator
from tvm_int8.quantization.few_bits import MOST_BITS
from tvm_int8.quantization.layer_noise import NoiseByBits
from tvm_int8.quantization.output_noise import decibels

MEASURED_BITS = (3, 5)
"""Everywhere, where layers together are measured, or the nearest there are; the mean counts."""
FEW_BITS, ALL_BITS = 4, 8
"""Per weight, on average: where all of that counts, and nothing of it."""


class BitPrediction:
    """Foretells choices for one network.

    Parameters
    ----------
    allocator : BitAllocator
    noises : sequence of NoiseByBits
        Of all its layers.
    """

    def __init__(self, allocator: BitAllocator, noises: Sequence[NoiseByBits]):
        self.allocator, self.noises = allocator, noises

    @cached_property
    def together_db(self) -> float:
        """By how much outputs of few bits are better than added noises say; 0 where layers cannot have few."""
        common = set.intersection(*(set(noise.output) for noise in self.noises)) if self.noises else set()
        few = [int(bits) for bits in common if bits <= MOST_BITS]
        chosen = {min(few, key=lambda own: abs(own - wanted)) for wanted in MEASURED_BITS if few}
        found = float(np.mean([self._together_db(bits) for bits in chosen])) if chosen else 0.0
        return found if math.isfinite(found) else 0.0  # no noise, whatever the bits

    def _together_db(self, bits: int) -> float:
        added = self.allocator.reached(None) + sum(noise.output[bits] for noise in self.noises)
        return decibels(self.allocator.delivered([bits] * len(self.noises))) - decibels(added)

    def __call__(self, base: float, noises: Sequence[NoiseByBits], widths: Sequence[float]) -> float:
        """SQNR in dB of what has these widths; `base` is noise that comes on top.

        Between 4 and 8 bits per weight, on average, less and less is to be made good.
        """
        own = [noise.output[bits] for noise, bits in zip(noises, widths, strict=True)]
        spared = sum(noise.count * (ALL_BITS - bits) for noise, bits in zip(noises, widths, strict=True))
        share = min(spared / max(sum(noise.count for noise in noises), 1) / (ALL_BITS - FEW_BITS), 1.0)
        total = base + sum(own)
        return decibels(total) + share * self.together_db if share and total else decibels(total)

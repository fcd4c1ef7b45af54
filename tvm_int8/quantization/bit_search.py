"""The search for bit-widths on a network: predicted by adding noises up, then measured, all together.

Noises of layers add up as long as they are small. What is left of the error is taken out by measuring what was chosen:
for a wanted SQNR the noise allowed by prediction is corrected by what was reached, and for a size the best of several
choices counts. Of many choices the best is found with every layer rounded by itself, which takes no time; the last few
are compared, and what is found is measured, as they are compiled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from tvm_int8.errors import ConfigError
from tvm_int8.quantization.bit_allocator import BitAllocator
from tvm_int8.quantization.bit_budget import METHODS, Goal, Item, Widths, total_bits, total_noise
from tvm_int8.quantization.bit_widths import WeightBits
from tvm_int8.quantization.layer_noise import NoiseByBits

CORRECTIONS = 8
"""How often the allowed noise is corrected, at most."""
DELIVERIES = 4
"""How often by what the compiled network has."""
ENOUGH = 0.95
"""Of the allowed noise: there is no use in more."""
MOST_COMBINATIONS = 100_000
"""Choices that an exhaustive search measures, at most."""
WEIGHTINGS = ("sensitivity", "sqnr")


def items_of(noises: Sequence[NoiseByBits], weighting: str) -> list[Item]:
    """What is to be allocated: by noise at the outputs ("sensitivity"), or of its own ("sqnr", as in the paper)."""
    return [Item(n.name, n.count, n.own if weighting == "sqnr" else n.output, n.channels) for n in noises]


@dataclass(frozen=True)
class Found:
    """Widths of the items, and the noise at the outputs of the network that is compiled with them, measured."""

    widths: Widths
    measured: float


class BitSearch:
    """Chooses widths for the items of a network.

    Parameters
    ----------
    allocator : BitAllocator
    items : sequence of Item
        The layers' weights; `joint`: and the activations behind them.
    activations : list of int or None
        Widths of the activations where they are not among the items; None: 8 bits.
    joint : bool
    progress : bool
    """

    def __init__(
        self,
        allocator: BitAllocator,
        items: Sequence[Item],
        activations: Widths | None = None,
        joint: bool = False,
        progress: bool = True,
    ):
        self.allocator, self.items, self.activations, self.joint = allocator, list(items), activations, joint
        self.progress = progress
        rounded = None if activations is None else [int(bits) for bits in activations]
        self.base = 0.0 if joint else allocator.reached(None, rounded)
        """Noise at the outputs that the items have no part in."""

    def alone(self, widths: Widths) -> float:
        """Noise at the outputs, every layer's weights rounded by themselves."""
        return self.allocator.reached(*self._chosen(widths))

    def measured(self, widths: Widths) -> float:
        """Noise at the outputs of the network that is compiled."""
        return self.allocator.delivered(*self._chosen(widths))

    def _chosen(self, widths: Widths) -> tuple[list[WeightBits], list[int] | None]:
        """Of weights and of activations."""
        count, activations = len(self.allocator.layers), self.activations
        weights = [item.widths(bits) for item, bits in zip(self.items[:count], widths, strict=False)]
        if self.joint:
            activations = widths[count:]
        return weights, None if activations is None else [int(bits) for bits in activations]

    def within(self, method: str, budget: float) -> Found | None:
        """Widths that add up to at most `budget` bits; None where there are none."""
        if method == "exhaustive":
            widths = min(self._fitting(budget), key=self.alone, default=None)
            return None if widths is None else self._found(widths)
        goal = Goal(budget=budget)
        methods = ("optimal", "closed_form", "greedy") if method == "optimal" else (method,)
        candidates = [METHODS[name](self.items, goal) for name in methods]
        found = (self._found(widths) for widths in candidates if widths is not None)
        return min(found, key=lambda own: own.measured, default=None)

    def quiet(self, method: str, allowed: float) -> Found | None:
        """Widths with which the outputs have no more noise than `allowed`; None where none were found."""
        find = self._smallest if method == "exhaustive" else partial(self._quiet_alone, method)
        aim, best, tried = allowed, None, set()
        for _ in range(DELIVERIES):
            widths = find(aim)
            if widths is None or tuple(widths) in tried:
                break
            tried.add(tuple(widths))
            found = self._found(widths)
            if found.measured <= allowed and (best is None or self.bits(found) < self.bits(best)):
                best = found
            if ENOUGH * allowed <= found.measured <= allowed:
                break
            aim *= ENOUGH**0.5 * allowed / max(found.measured, 1e-3 * allowed)
        return best

    def _quiet_alone(self, method: str, allowed: float) -> Widths | None:
        """The same of layers rounded by themselves."""
        limit, best, tried = allowed - self.base, None, set()
        for _ in range(CORRECTIONS):
            widths = METHODS[method](self.items, Goal(allowed=limit))
            if widths is None or tuple(widths) in tried:
                break
            tried.add(tuple(widths))
            noise = self.alone(widths)
            if noise <= allowed and (best is None or self._bits(widths) < self._bits(best)):
                best = widths
            part = max(noise - self.base, 1e-3 * allowed) / max(total_noise(self.items, widths), 1e-30)
            aim = (allowed - self.base) / part
            limit = aim if noise > allowed else max(aim, limit)
            limit *= 0.98 if noise > allowed else 1.0
        return best

    def bits(self, found: Found) -> float:
        """All bits of what was found."""
        return self._bits(found.widths)

    def _bits(self, widths: Widths) -> float:
        return total_bits(self.items, widths)

    def _found(self, widths: Widths) -> Found:
        return Found(widths, self.measured(widths))

    def _fitting(self, budget: float) -> Iterator[Widths]:
        """All combinations within a budget that leave no room for another bit."""
        options = [sorted(item.noise) for item in self.items]
        self._check(options)
        counts = [item.count for item in self.items]
        for widths in itertools.product(*options):
            left = budget - sum(count * bits for count, bits in zip(counts, widths, strict=True))
            if left >= 0 and not any(
                count * (nearest - bits) <= left
                for count, bits, own in zip(counts, widths, options, strict=True)
                if (nearest := min((b for b in own if b > bits), default=math.inf)) < math.inf
            ):
                yield list(widths)

    def _smallest(self, allowed: float) -> Widths | None:
        options = [sorted(item.noise) for item in self.items]
        self._check(options)
        ordered = sorted(itertools.product(*options), key=lambda widths: total_bits(self.items, list(widths)))
        for widths in tqdm(ordered, "exhaustive", unit="choice", disable=None if self.progress else True):
            if self.alone(list(widths)) <= allowed:
                return list(widths)
        return None

    def _check(self, options: Sequence[Sequence[float]]) -> None:
        number = math.prod(len(own) for own in options)
        if number > MOST_COMBINATIONS:
            found = f"{number:.3g} combinations of {len(options)} layers"
            expected = f"at most {MOST_COMBINATIONS}"
            raise ConfigError("option 'method'", f"'exhaustive': {found}", expected, "pass fewer widths, or 'optimal'")

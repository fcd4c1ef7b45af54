"""How to spend bits: every item gets a width, so that noise is least for a number of bits, or bits are for a noise.

    minimise  sum_i n_i(b_i)           subject to  sum_i rho_i b_i <= budget
    minimise  sum_i rho_i b_i          subject to  sum_i n_i(b_i) <= allowed

rho_i is how many weights (or activations) item i has, n_i(b) the noise it makes with b bits; noises of independent
roundings add up. This is Lin et al., *Fixed point quantization of deep convolutional networks*, 2016
(arXiv:1511.06393), equations 8 to 12; widths are integers here from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_int8.quantization.bit_widths import WeightBits
from tvm_int8.quantization.choice_knapsack import solve
from tvm_int8.quantization.closed_form import RealWidths

ROUNDING = 1e-12
"""Of sums of floats."""
Widths = list[float]
"""Bits per weight: whole numbers, but for layers whose output channels differ."""


@dataclass(frozen=True)
class Item:
    """The weights of a layer, or the values of a tensor.

    Parameters
    ----------
    name : str
    count : int
        How many values: what a bit more costs.
    noise : mapping of float to float
        Bits to noise power over signal power; not necessarily falling.
    channels : mapping of float to tuple of int
        Bits to those of every output channel, where channels differ: then bits are their average.
    """

    name: str
    count: int
    noise: Mapping[Any, float]
    channels: Mapping[float, tuple[int, ...]] = field(default_factory=dict)

    def widths(self, bits: float) -> WeightBits:
        """Whole numbers: of all weights, or of every output channel."""
        return self.channels.get(bits, int(bits))


@dataclass(frozen=True)
class Goal:
    """What is limited: bits altogether, or the noise that all items add up to; the other one is made least."""

    budget: float | None = None
    allowed: float | None = None

    @property
    def limit(self) -> float:
        """Of bits, with what sums of floats round; or of noise."""
        limit = self.allowed if self.budget is None else self.budget * (1 + ROUNDING)
        assert limit is not None
        return limit

    def reached(self, items: Sequence[Item], widths: Widths) -> bool:
        """Whether a choice stays within the limit."""
        total = total_noise if self.budget is None else total_bits
        return total(items, widths) <= self.limit


def total_bits(items: Sequence[Item], widths: Widths) -> float:
    """All bits of a choice."""
    return sum(item.count * bits for item, bits in zip(items, widths, strict=True))


def total_noise(items: Sequence[Item], widths: Widths) -> float:
    """The noise of a choice, predicted."""
    return sum(item.noise[bits] for item, bits in zip(items, widths, strict=True))


def equal(items: Sequence[Item], goal: Goal) -> Widths | None:
    """The same width for all: the largest that fits the budget, the smallest that is quiet enough; None: there is none.

    Where an item lacks that width, the nearest one it has.
    """
    choices = [[_nearest(item, bits) for item in items] for bits in sorted({b for item in items for b in item.noise})]
    fitting = [choice for choice in choices if goal.reached(items, choice)]
    if not fitting:
        return None
    return fitting[-1] if goal.budget is not None else fitting[0]


def closed_form(items: Sequence[Item], goal: Goal) -> Widths | None:
    """The paper's: noises in proportion to sizes, real numbers (`RealWidths`), each then rounded up or down.

    Which ones up, is chosen exactly: rounding all at the same fraction would leave bits unspent.
    """
    real = RealWidths(np.array([item.count for item in items]), [item.noise for item in items])
    limited = real.within if goal.budget is not None else real.quiet
    widths = limited(goal.limit)
    return None if widths is None else _least(items, goal, real.neighbours(widths))


def greedy(items: Sequence[Item], goal: Goal) -> Widths | None:
    """From the largest widths down, a bit at a time where that adds least noise for the bits it saves.

    With a budget until it is kept, and then up again where there is room; with an allowed noise as long as it lasts.
    """
    widths = [max(item.noise) for item in items]
    if goal.allowed is not None and not goal.reached(items, widths):
        return None
    down = _Steps(items, widths, -1)
    if goal.allowed is not None:
        while down.take(lambda: goal.reached(items, widths)):
            pass
        return widths
    while not goal.reached(items, widths):
        if not down.take(lambda: True):
            return None
    _spend(items, widths, goal)
    return widths


def _spend(items: Sequence[Item], widths: Widths, goal: Goal) -> None:
    """What is left of a budget, a step at a time where it lowers noise most for its bits."""
    up = _Steps(items, widths, 1)
    while up.take(lambda: goal.reached(items, widths)):
        pass


class _Steps:
    """Single bits given to items (direction 1) or taken (-1), the best ratio of noise to bits first."""

    def __init__(self, items: Sequence[Item], widths: Widths, direction: int):
        self.items, self.widths, self.direction = items, widths, direction

    def take(self, allowed: Callable[[], bool]) -> bool:
        """Take the best step that leaves what is `allowed`; False where there is none."""
        ranked = []
        for index, (item, bits) in enumerate(zip(self.items, self.widths, strict=True)):
            others = [b for b in item.noise if (b - bits) * self.direction > 0]
            if others:
                nearest = min(others, key=lambda b: abs(b - bits))
                change = (item.noise[nearest] - item.noise[bits]) / (item.count * abs(nearest - bits))
                ranked.append((change, index, nearest))
        for change, index, nearest in sorted(ranked):
            if self.direction > 0 and change >= 0:
                return False
            before, self.widths[index] = self.widths[index], nearest
            if allowed():
                return True
            self.widths[index] = before
        return False


def optimal(items: Sequence[Item], goal: Goal) -> Widths | None:
    """The exact optimum of the additive model, see `choice_knapsack`."""
    return _least(items, goal, [list(item.noise) for item in items])


def _least(items: Sequence[Item], goal: Goal, options: Sequence[Sequence[float]]) -> Widths | None:
    """The exact optimum where each item has some of its widths."""
    costs = [{b: (float(i.count * b), i.noise[b]) for b in own} for i, own in zip(items, options, strict=True)]
    if goal.budget is None:
        costs = [{b: (noise, bits) for b, (bits, noise) in own.items()} for own in costs]
    return solve(costs, goal.limit)


METHODS: Mapping[str, Callable[[Sequence[Item], Goal], Widths | None]] = {
    "optimal": optimal,
    "closed_form": closed_form,
    "greedy": greedy,
    "equal": equal,
}
"""Each takes items and a goal, and returns a width per item, or None where none reaches the goal."""


def _nearest(item: Item, bits: float) -> float:
    return min(item.noise, key=lambda own: (abs(own - bits), own))

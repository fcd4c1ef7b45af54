"""What of a kernel can be chosen: its knobs, which combinations can be built, and how fast a model expects them to be.

A schedule declares a `KnobSpace` for a spec and a CPU.  Compiling without tuning takes its `heuristic`; tuning searches
its `points`; a record of a tuning log counts only where `objection` has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Knobs = dict[str, Any]

PLAUSIBLE = 1.5  # points that the model expects to take longer than this times the heuristic are not searched


@dataclass(frozen=True)
class Choice:
    """The template and knobs a kernel is to be built with, and who says so ("tuned: cascadelake", ...)."""

    template: str
    knobs: Knobs
    origin: str = "tuned"


@dataclass(frozen=True)
class KnobSpace:
    """The knobs of one spec's kernel.

    heuristic : what is built without tuning; a valid point
    choices : values per knob; a spec without choices has one kernel
    valid : whether a combination can be built and cannot but be poor (registers spilled, empty tiles)
    estimate : relative time that a model of the CPU expects, for ranking
    features : numbers from which a cost model learns, beside knobs and sizes of the workload
    """

    heuristic: Knobs = field(default_factory=dict)
    choices: Mapping[str, tuple] = field(default_factory=dict)
    valid: Callable[[Knobs], bool] = lambda knobs: True
    estimate: Callable[[Knobs], float] = lambda knobs: 1.0
    features: Callable[[Knobs], dict[str, float]] = lambda knobs: {}

    def points(self) -> list[Knobs]:
        """All plausible valid points, the heuristic first, then by the model's expectation."""
        bound = PLAUSIBLE * self.estimate(self.heuristic)
        estimates = [(self.estimate(knobs), i, knobs) for i, knobs in enumerate(self._valid_points())]
        ranked = [knobs for cost, _, knobs in sorted(estimates, key=lambda e: e[:2]) if cost <= bound]
        return [self.heuristic, *(knobs for knobs in ranked if knobs != self.heuristic)]

    def objection(self, knobs: Knobs) -> str | None:
        """Why a kernel cannot be built with these knobs; None where it can."""
        if set(knobs) != set(self.heuristic):
            return (
                f"knobs {', '.join(sorted(knobs)) or 'none'} instead of {', '.join(sorted(self.heuristic)) or 'none'}"
            )
        for name, value in knobs.items():
            known = (*self.choices.get(name, ()), self.heuristic[name])
            if not any(type(value) is type(choice) and value == choice for choice in known):
                return f"{name}={value!r}, which is none of {', '.join(map(repr, dict.fromkeys(known)))}"
        return None if knobs == self.heuristic or self.valid(knobs) else "a combination of knobs that cannot be built"

    def _valid_points(self) -> Iterator[Knobs]:
        for values in itertools.product(*self.choices.values()):
            knobs = dict(zip(self.choices, values, strict=True))
            if self.valid(knobs):
                yield knobs

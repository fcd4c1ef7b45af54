"""Fair timing of several runners that share a machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_REST_S = 0.004  # lets the previous runner's idle threads stop spinning


@dataclass(frozen=True)
class Times:
    """Statistics of one runner's timed runs, in milliseconds, and the runs themselves, in order."""

    median_ms: float
    min_ms: float
    p90_ms: float
    runs: int
    all_ms: tuple[float, ...] = ()

    def statistics(self) -> dict[str, float]:
        """Return all but the single runs, rounded, for tables."""
        return {name: round(value, 4) for name, value in vars(self).items() if name != "all_ms"}

    def relative_to(self, other: Times) -> float:
        """The median over pairs of runs of the same turn: what slowed the machine down slowed both."""
        return float(np.median(np.divide(self.all_ms, other.all_ms)))


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, runs_per_turn: int = 3, limit_s: float = 60.0
) -> dict[str, Times]:
    """Time the callables in turn, A B C A B C ..., so that whatever else the machine does hits all of them alike.

    A turn is a short rest, one untimed run that brings caches and threads back, and `runs_per_turn` timed runs. The
    rest matters: worker threads of one runtime spin for a while after a run and would take the cores of the next.

    Parameters
    ----------
    calls : mapping of str to callable
        What to run.
    rounds : int
        Turns of each.
    runs_per_turn : int
        Timed runs of a turn.
    limit_s : float
        No new round begins after this many seconds (but one is always made).

    Returns
    -------
    dict of str to Times
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + limit_s
    for done in range(max(rounds, 1)):
        if done and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            time.sleep(_REST_S)
            call()
            for _ in range(runs_per_turn):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: Times(float(np.median(t)), float(np.min(t)), float(np.percentile(t, 90)), len(t), tuple(t))
        for name, t in times.items()
    }

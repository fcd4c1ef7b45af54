"""Where a job builds and measures: candidates to records, each beside its workload's heuristic."""

from __future__ import annotations

import datetime
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm

from tvm_int8.target import ResolvedTarget

from .build import build, make_builder
from .candidate import Candidate, placeholder, schedule_of
from .options import Options
from .record import Record
from .runner import SideBySideRunner, last_line, runner_input

TURNS, FINAL_TURNS = 9, 31


class Bench:
    """Worker processes that build, and those or machines that measure; a context manager.

    Parameters
    ----------
    resolved : ResolvedTarget
    options : Options
    measured_on : str
        The CPU that measures, for the records.
    """

    def __init__(self, resolved: ResolvedTarget, options: Options, measured_on: str):
        self.resolved, self.options, self.measured_on = resolved, options, measured_on

    def __enter__(self) -> Bench:
        """Start the workers."""
        options = self.options
        self._directory = tempfile.TemporaryDirectory(prefix="tvm_int8-tune-")
        workers = len(os.sched_getaffinity(0))
        self._builder = make_builder(self.resolved, self._directory.name, workers, options.timeout_s)
        self._runner = SideBySideRunner(options.connection, options.workers, options.timeout_s, TURNS)
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, delete what they built."""
        self._runner.close()
        self._directory.cleanup()

    def build(self, candidates: Sequence[Candidate]) -> list[tuple[str | None, str]]:
        """Build all, several at once; per candidate the artifact's path, or None and why."""
        if not candidates:
            return []
        modules = [schedule_of(candidate, placeholder(candidate.workload)).mod for candidate in candidates]
        results = build(self._builder, modules, self.resolved.tvm_target)
        return [
            (str(result.artifact_path), "") if result.artifact_path else (None, last_line(str(result.error_msg)))
            for result in results
        ]

    def start(self, heuristic: str, others: Sequence[str], turns: int = TURNS) -> list[Any]:
        """Begin to measure artifacts of a workload beside its heuristic's; futures, the heuristic's first."""
        return self._runner.start([runner_input(path) for path in (heuristic, *others)], turns)

    def record(self, candidate: Candidate, result: Any, beside: Any) -> Record:
        """What became of a candidate, given its result and that of the heuristic beside it."""
        if beside.error_msg:
            return self.failure(candidate, f"what it is compared with failed: {beside.error_msg}")
        if result.error_msg:
            return self.failure(candidate, str(result.error_msg))
        times, heuristic = ([float(second) for second in r.run_secs] for r in (result, beside))
        heuristic_us = _typical(heuristic) * 1e6
        return self._record(candidate, relative_time(times, heuristic) * heuristic_us, heuristic_us, len(times))

    def failure(self, candidate: Candidate, error: str) -> Record:
        """The record of a candidate that has no times."""
        return self._record(candidate, math.inf, 1.0, 0, error)

    def heuristic_record(self, candidate: Candidate, time_us: float, turns: int) -> Record:
        """The record that says: nothing is faster than the heuristic."""
        return self._record(candidate, time_us, time_us, turns)

    def _record(self, candidate: Candidate, time_us: float, heuristic_us: float, turns: int, error: str = "") -> Record:
        made = {"cpu": self.measured_on, "tvm": tvm.__version__, "date": datetime.date.today().isoformat()}
        what = candidate.workload, candidate.template, candidate.version, candidate.knobs, self.resolved.mcpu
        return Record(*what, time_us, heuristic_us, turns, error=error, **made)


def _typical(seconds: Sequence[float]) -> float:
    """The lower quartile: other processes only ever make a turn slower."""
    return float(np.percentile(seconds, 25))


def relative_time(seconds: Sequence[float], beside: Sequence[float]) -> float:
    """Time relative to another candidate's, turn by turn: what slows a turn down slows both.

    Unless one of a few turns was disturbed half-way: who was given up after them was slow on the whole, too.
    """
    paired = float(np.median([a / b for a, b in zip(seconds, beside, strict=False)]))
    return paired if len(seconds) == len(beside) else max(paired, _typical(seconds) / _typical(beside))

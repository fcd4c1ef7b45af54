"""A workload under way in a tuning job: what has been measured of it, and what more can be expected."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

from .candidate import Candidate, placeholder, schedule_of
from .record import Record
from .search import known_points, learnt, tune_context
from .workload import Workload

FIRST_BATCH, BATCH = 5, 8
EXPECTED_GAIN = 0.05
"""Share of a workload's time that the next batch is expected to save; halved by every batch that saved nothing."""
WORTHWHILE = 0.001
"""Share of a network's time: workloads of which less is expected are finished."""
IMPROVEMENT = 0.99
"""A candidate has to be this times faster than the best so far to count as a gain."""
GMACS_PER_S = 200
"""For guessing how much time a workload takes before it has been measured."""
OPEN = "open"
"""Field of a final record whose search was cut short: another job may go on with it."""


@dataclass
class Task:
    """A workload that is being tuned.

    weight : share of the time of the network where that is largest
    records : per point, trials of this job and of earlier ones
    candidates : what can be measured, the heuristic first; empty unless the task is under way
    artifacts : per point, those that will be measured again
    fruitless : batches since the last gain
    """

    workload: Workload
    weight: float = 0.0
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    context: Any = None
    artifacts: dict[tuple[str, str], str] = field(default_factory=dict)
    fruitless: int = 0
    exhausted: bool = False
    final: Record | None = None

    def take_over(self, record: Record) -> None:
        """Take over what an earlier job measured."""
        if not record.final:
            self.records[record.point] = record
        elif not record.extra.get(OPEN) and (self.final is None or record.rank() < self.final.rank()):
            self.final = record

    # What is known

    @property
    def ranked(self) -> list[Record]:
        """Trials that delivered the right result, the fastest first."""
        return sorted((r for r in self.records.values() if not r.error), key=lambda r: r.ratio)

    @property
    def best(self) -> Record | None:
        """The fastest trial so far."""
        return next(iter(self.ranked), None)

    @property
    def heuristic_us(self) -> float:
        """Time of what is built untuned; NaN until it has been measured."""
        return next((r.heuristic_us for r in self.records.values() if not r.error), math.nan)

    @property
    def time_us(self) -> float:
        """Time of what is built untuned, guessed as long as it has not been measured."""
        measured = self.heuristic_us
        return self.workload.spec().macs / (GMACS_PER_S * 1e3) if math.isnan(measured) else measured

    @property
    def expected(self) -> float:
        """Share of a network's time that the next batch is expected to save."""
        return self.weight * EXPECTED_GAIN * 0.5**self.fruitless

    @property
    def is_worthwhile(self) -> bool:
        """Whether another batch is; the first one always is."""
        return not self.exhausted and (not self.records or self.expected >= WORTHWHILE)

    @property
    def heuristic(self) -> Candidate:
        """What is built untuned, of a task under way."""
        return self.candidates[0]

    # Under way

    def open(
        self, candidates: Sequence[Candidate], seeds: int, search: Any, target: tvm.target.Target, model: Any
    ) -> None:
        """Begin, or go on: `search` makes the strategy from the indices of what has been measured."""
        self.candidates = list(candidates)
        known = known_points(self.records.values(), self.candidates)
        module = placeholder(self.workload)
        self.context = tune_context(module, target, search(known))
        schedules = [schedule_of(candidate, module) for candidate in self.candidates]
        size = BATCH if known else 2 + min(seeds, 2) if seeds else FIRST_BATCH
        self.fruitless = max(self.fruitless, int(seeds > 0))  # most of what can be gained is in the seeds
        self.context.pre_tuning(len(schedules), size, design_spaces=schedules, cost_model=model)
        if model is not None and known:  # what earlier jobs measured
            measured = [MeasureCandidate(schedules[i], []) for i in known]
            model.update(self.context, measured, [learnt(record) for record in known.values()])

    def note(self, batch: Sequence[MeasureCandidate], records: Sequence[Record]) -> None:
        """A batch has been measured."""
        before = self.best.ratio if self.best else 1.0
        self.records |= {record.point: record for record in records}
        gained = self.best is not None and self.best.ratio < IMPROVEMENT * before
        self.fruitless = 0 if gained else self.fruitless + 1
        self.context.notify_runner_results(batch, [learnt(record) for record in records])

    def keep(self, point: tuple[str, str], path: str, records: Mapping[tuple[str, str], Record]) -> None:
        """Keep an artifact if it is the heuristic's or one of the two best of `records`; delete others."""
        if self.artifacts.setdefault(point, path) != path:
            shutil.rmtree(path, ignore_errors=True)
        ranked = sorted((r for r in records.values() if not r.error), key=lambda r: r.ratio)
        needed = {self.heuristic.point, *(record.point for record in ranked[:2])}
        for other in [p for p in self.artifacts if p not in needed]:
            shutil.rmtree(self.artifacts.pop(other), ignore_errors=True)

    def close(self) -> None:
        """Free what a task under way holds."""
        for path in self.artifacts.values():
            shutil.rmtree(path, ignore_errors=True)
        self.artifacts, self.context, self.candidates = {}, None, []


def weigh(tasks: Sequence[Task], networks: Sequence[Mapping[Workload, int]]) -> None:
    """Set the tasks' weights."""
    by_workload = {task.workload: task for task in tasks}
    for task in tasks:
        task.weight = 0.0
    for network in networks:
        times = {workload: count * by_workload[workload].time_us for workload, count in network.items()}
        total = sum(times.values()) or 1.0
        for workload, time_us in times.items():
            task = by_workload[workload]
            task.weight = max(task.weight, time_us / total)


def speedup(tasks: Sequence[Task], networks: Sequence[Mapping[Workload, int]]) -> float:
    """Time of the networks' kernels with heuristic knobs by time with the best known, over what has been measured."""
    by_workload = {task.workload: task for task in tasks}
    before = after = 0.0
    for network in networks:
        for workload, count in network.items():
            task = by_workload[workload]
            if not math.isnan(task.heuristic_us):
                best = task.final or task.best
                before += count * task.heuristic_us
                after += count * task.heuristic_us * (min(1.0, best.ratio) if best else 1.0)
    return before / after if after else 1.0

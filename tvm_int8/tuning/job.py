"""A tuning job: rounds of candidates, spent where a network's time is, every result on disk at once."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tqdm import tqdm
from tvm.s_tir.meta_schedule.runner import RPCConfig, RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

from tvm_int8.schedules.cpu import Cpu
from tvm_int8.target import ResolvedTarget

from .build import build, make_builder
from .candidate import Candidate, candidate_of, placeholder, schedule_of
from .log_file import append, read_log
from .record import Record
from .runner import TIMEOUT_S, SideBySideRunner, runner_input
from .search import WARM_UP, KnobSearch, Vectorizer, candidates_of, cost_model, known_points, tune_context
from .workload import Workload

FIRST_BATCH, BATCH = 5, 8
WORKLOADS_PER_ROUND = 12
TURNS, FINAL_TURNS = 9, 31
FINAL_S = 0.6
"""Seconds that a final comparison takes: kept back when time is limited."""
EXPECTED_GAIN = 0.05
"""Share of a workload's time that the next batch is expected to save; halved by every batch that saved nothing."""
WORTHWHILE = 0.001
"""Share of a network's time: workloads of which less is expected are finished."""
IMPROVEMENT = 0.99
"""A candidate has to be this times faster than the best so far to count as a gain."""
KEPT = 0.98
"""A record other than the heuristic has to be this times faster in the final comparison."""


_OPEN = "open"
"""Field of a final record whose search was cut short: another job may go on with it."""


@dataclass
class Task:
    """A workload that is being tuned."""

    workload: Workload
    weight: float
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    context: Any = None
    artifacts: dict[tuple[str, str], str] = field(default_factory=dict)
    fruitless: int = 0
    exhausted: bool = False
    final: Record | None = None

    @property
    def best(self) -> Record | None:
        """The fastest trial so far."""
        return min((r for r in self.records.values() if not r.error), key=lambda r: r.ratio, default=None)

    @property
    def heuristic_us(self) -> float:
        """Time of what is built untuned; NaN until it has been measured."""
        return next((r.heuristic_us for r in self.records.values() if not r.error), math.nan)

    @property
    def trials(self) -> int:
        """Candidates measured."""
        return len(self.records)


@dataclass(frozen=True)
class TuningResult:
    """What a job has done.

    Parameters
    ----------
    workloads, tuned_before, tuned : int
        Distinct workloads of the network; those of them that the log had finished before, and has now.
    trials, failed : int
        Candidates measured by this job; those of them that crashed, hung or computed something else.
    speedup : float
        Time of all convolutions and dense layers with heuristic knobs, by that with the best known.
    stopped : str
        Why the job ended: "finished", "trials", "time" or "interrupted".
    seconds : float
    records : tuple of Record
        The best one of each workload.
    """

    workloads: int
    tuned_before: int
    tuned: int
    trials: int
    failed: int
    speedup: float
    stopped: str
    seconds: float
    records: tuple[Record, ...] = ()

    def __str__(self) -> str:
        reason = {"finished": "nothing left worth a trial", "trials": "all trials spent", "time": "time is up"}
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.tuned}/{self.workloads} workloads tuned ({self.tuned_before} before), {self.trials} trials{failed} "
            f"in {self.seconds / 60:.1f} min; kernels {self.speedup:.3f}x as fast as untuned; "
            f"{reason.get(self.stopped, self.stopped)}"
        )


@dataclass(frozen=True)
class Options:
    """How a job is run.

    Parameters
    ----------
    trials : int
        Candidates to measure at most.
    minutes : float, optional
        Time to take at most.
    method : str
        "xgboost" or "random".
    connection : RPCConfig, optional
        The tracker of the machines that measure; None: this one.
    workers : int
        Machines behind the tracker.
    timeout_s : float
        After which building or measuring a candidate is given up.
    seed : int
    progress : bool
    """

    trials: int
    minutes: float | None = None
    method: str = "xgboost"
    connection: RPCConfig | None = None
    workers: int = 1
    timeout_s: float = TIMEOUT_S
    seed: int = 0
    progress: bool = True


class Job:
    """Tune workloads for a target.

    Parameters
    ----------
    weights : dict of Workload -> float
        How often a network runs a workload, per network if there are several: what its time counts.
    resolved : ResolvedTarget
        With the number of threads in its CPU.
    log : path
        Read first, so that what an earlier job measured is not measured again; then appended to.
    seeds : dict of Workload -> list of (template, knobs)
        What did well on similar CPUs.
    measured_on : str
        The model of the CPU that measures.
    """

    def __init__(
        self,
        networks: Sequence[Mapping[Workload, int]],
        resolved: ResolvedTarget,
        log: str | os.PathLike[str],
        options: Options,
        seeds: Mapping[Workload, list[tuple[str, dict]]],
        measured_on: str,
    ):
        self.networks, self.resolved, self.log, self.options = networks, resolved, log, options
        self.cpu: Cpu = resolved.cpu
        self.measured_on = measured_on
        self.tasks = [Task(workload, 0.0) for workload in dict.fromkeys(w for network in networks for w in network)]
        self._take_over_log()
        self.tuned_before = sum(task.final is not None for task in self.tasks)
        self.seeds = seeds
        vectorizer = Vectorizer([task.workload for task in self.tasks], self.cpu) if self.tasks else None
        self.model = cost_model(vectorizer) if options.method == "xgboost" and vectorizer else None
        self.trials = self.failed = 0
        self._left = options.trials

    def run(self) -> TuningResult:
        """Search until there is nothing left worth a trial, or trials or time are spent, or Ctrl-C."""
        started = time.monotonic()
        self._deadline = started + 60 * self.options.minutes if self.options.minutes else math.inf
        self._interrupted = False
        with (
            tempfile.TemporaryDirectory(prefix="tvm_int8-tune-") as directory,
            self._interruptible(),
            self._workers(directory),
            self._bar(),
        ):
            try:
                stopped = self._search()
            except BaseException as error:  # on its way through TVM an interrupt becomes some other error
                if not self._interrupted and not isinstance(error, KeyboardInterrupt):
                    raise
                stopped = "interrupted"
        return self._result(stopped, time.monotonic() - started)

    def _take_over_log(self) -> None:
        """What earlier jobs measured."""
        if not os.path.exists(self.log):
            return
        by_workload = {task.workload: task for task in self.tasks}
        for record in read_log(self.log).records:
            task = by_workload.get(record.workload)
            if task is None or record.target != self.resolved.mcpu:
                continue
            if record.final and not record.extra.get(_OPEN):
                task.final = record if task.final is None or record.rank() < task.final.rank() else task.final
            elif not record.final:
                task.records[record.point] = record

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Remember that Ctrl-C was pressed."""

        def note(*_: Any) -> None:
            self._interrupted = True
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield  # signals go to the main thread
            return
        previous = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextlib.contextmanager
    def _workers(self, directory: str) -> Iterator[None]:
        workers = len(os.sched_getaffinity(0))
        self._directory = directory
        self._builder = make_builder(self.resolved, directory, workers, self.options.timeout_s)
        self._runner = SideBySideRunner(self.options.connection, self.options.workers, self.options.timeout_s, TURNS)
        try:
            yield
        finally:
            self._runner.close()

    @contextlib.contextmanager
    def _bar(self) -> Iterator[None]:
        layers = sum(count for network in self.networks for count in network.values())
        with tqdm(total=self.options.trials, unit="trial", disable=not self.options.progress, leave=True) as self.bar:
            if self.options.progress:
                known = f"{len(self.tasks)} workloads in {layers} layers, {self.tuned_before} of them tuned before"
                self.bar.write(f"{known} ({os.fspath(self.log)})", file=sys.stderr)
            self._show()
            yield

    def _show(self) -> None:
        done = sum(task.final is not None for task in self.tasks)
        text = f"{done}/{len(self.tasks)} workloads, {self.speedup():.3f}x"
        if self.failed:
            text += f", {self.failed} failed"
        if self._deadline < math.inf:
            text += f", {max(0.0, self._deadline - time.monotonic()) / 60:.0f} min left"
        self.bar.set_postfix_str(text)

    def speedup(self) -> float:
        """Time of all kernels with heuristic knobs by time with the best known, over what has been measured."""
        before = after = 0.0
        for network in self.networks:
            for task in self.tasks:
                if task.workload in network and not math.isnan(task.heuristic_us):
                    best = task.final or task.best
                    before += network[task.workload] * task.heuristic_us
                    after += network[task.workload] * task.heuristic_us * (min(1.0, best.ratio) if best else 1.0)
        return before / after if after else 1.0

    # Rounds

    def _search(self) -> str:
        while True:
            if time.monotonic() > self._deadline - FINAL_S * len(self._unfinished()):
                stopped = "time"
                break
            if self.trials >= self.options.trials:
                stopped = "trials"
                break
            chosen = self._worthwhile()[:WORKLOADS_PER_ROUND]
            if not chosen:
                stopped = "finished"
                break
            self._round(chosen)
            self._finish([task for task in chosen if not self._is_worthwhile(task)])
        remaining = self._unfinished()
        for start in range(0, len(remaining), WORKLOADS_PER_ROUND):
            self._finish(remaining[start : start + WORKLOADS_PER_ROUND])
        return stopped

    def _unfinished(self) -> list[Task]:
        return [task for task in self.tasks if task.final is None and task.best is not None]

    def _worthwhile(self) -> list[Task]:
        """Tasks from which most is expected; new ones first of all, since only measuring tells their share."""
        self._weigh()
        open_tasks = [task for task in self.tasks if task.final is None and self._is_worthwhile(task)]
        return sorted(open_tasks, key=lambda task: (task.trials > 0, -self._expected(task)))

    def _is_worthwhile(self, task: Task) -> bool:
        return not task.exhausted and (not task.trials or self._expected(task) >= WORTHWHILE)

    def _expected(self, task: Task) -> float:
        return task.weight * EXPECTED_GAIN * 0.5**task.fruitless

    def _weigh(self) -> None:
        """A task's weight is its share of the time of the network where that is largest."""
        by_workload = {task.workload: task for task in self.tasks}
        for task in self.tasks:
            task.weight = 0.0
        for network in self.networks:
            times = {w: count * self._time_us(by_workload[w]) for w, count in network.items()}
            total = sum(times.values()) or 1.0
            for workload, time_us in times.items():
                task = by_workload[workload]
                task.weight = max(task.weight, time_us / total)

    def _time_us(self, task: Task) -> float:
        """Measured, or guessed from the number of multiply-adds."""
        measured = task.heuristic_us
        return task.workload.spec().macs / 2e5 if math.isnan(measured) else measured

    def _round(self, tasks: list[Task]) -> None:
        """A batch of each task: all are built, then measured, each beside the task's heuristic."""
        batches: list[tuple[Task, list[Any]]] = []
        for task in tasks:
            if self._left <= 0:
                break
            if task.context is None:
                self._open(task)
            batch = task.context.generate_measure_candidates()
            if batch is None:
                task.exhausted = True
            else:
                batches.append((task, list(batch)))
                self._left -= len(batch)
        modules = [self._reference(task) for task, _ in batches if self._heuristic_point(task) not in task.artifacts]
        owners = [task for task, _ in batches if self._heuristic_point(task) not in task.artifacts]
        modules += [candidate.sch.mod for _, batch in batches for candidate in batch]
        built = build(self._builder, modules, self.resolved.tvm_target)
        for task, result in zip(owners, built, strict=False):
            if result.artifact_path:
                task.artifacts[self._heuristic_point(task)] = str(result.artifact_path)
        self._measure(batches, built[len(owners) :])

    def _open(self, task: Task) -> None:
        task.candidates = candidates_of(task.workload, self.cpu, self.seeds.get(task.workload, ()))
        known = known_points(task.records.values(), task.candidates)
        module = placeholder(task.workload)
        search = KnobSearch(known, self.options.seed, self._is_warm, lambda: self._left)
        task.context = tune_context(module, self.resolved.tvm_target, search)
        schedules = [schedule_of(candidate, module) for candidate in task.candidates]
        seeds = len(self.seeds.get(task.workload, ()))
        size = BATCH if known else 2 + min(seeds, 2) if seeds else FIRST_BATCH
        task.fruitless = max(task.fruitless, int(seeds > 0))  # most of what can be gained is in the seeds
        task.context.pre_tuning(len(schedules), size, design_spaces=schedules, cost_model=self.model)
        if self.model is not None and known:  # what earlier jobs measured
            measured = [MeasureCandidate(schedules[i], []) for i in known]
            self.model.update(task.context, measured, [_learnt(record) for record in known.values()])

    def _is_warm(self) -> bool:
        return self.model is not None and self.model.data_size >= WARM_UP

    def _heuristic_point(self, task: Task) -> tuple[str, str]:
        return _point(task.candidates[0])

    def _reference(self, task: Task) -> tvm.IRModule:
        return schedule_of(task.candidates[0], placeholder(task.workload)).mod

    def _measure(self, batches: list[tuple[Task, list[Any]]], built: list[Any]) -> None:
        position, running = 0, []
        for task, batch in batches:
            results = built[position : position + len(batch)]
            position += len(batch)
            candidates = [_candidate(measure_candidate) for measure_candidate in batch]
            reference = task.artifacts.get(self._heuristic_point(task))
            paths = [str(r.artifact_path) if r.artifact_path else None for r in results]
            inputs = [runner_input(path) for path in [reference, *paths] if path] if reference else []
            running.append((task, batch, candidates, results, paths, self._runner.run(inputs) if inputs else []))
        for task, batch, candidates, results, paths, futures in running:
            outcomes = iter([future.result() for future in futures])
            reference = next(outcomes, None)
            records, learnt = [], []
            for candidate, result, path in zip(candidates, results, paths, strict=True):
                outcome = next(outcomes) if path and reference is not None else None
                record = self._record(candidate, result, outcome, reference)
                records.append(record)
                learnt.append(_learnt(record))
                self._keep_artifact(task, record, path)
            self._note(task, batch, records, learnt)

    def _record(self, candidate: Candidate, built: Any, outcome: Any, reference: Any) -> Record:
        fields = dict(
            workload=candidate.workload,
            template=candidate.template,
            version=candidate.version,
            knobs=candidate.knobs,
            target=self.resolved.mcpu,
            cpu=self.measured_on,
            tvm=tvm.__version__,
            date=_today(),
        )
        if reference is None or reference.error_msg:
            error = f"what it is compared with failed: {reference.error_msg if reference else 'not built'}"
        elif outcome is None:
            error = f"not built: {_last_line(str(built.error_msg))}"
        else:
            error = str(outcome.error_msg or "")
        if error:
            return Record(**fields, time_us=math.inf, heuristic_us=1.0, rounds=0, error=error)
        times, beside = _seconds(outcome), _seconds(reference)
        heuristic_us = _typical(beside) * 1e6
        return Record(
            **fields, time_us=_paired(times, beside) * heuristic_us, heuristic_us=heuristic_us, rounds=len(times)
        )

    def _keep_artifact(self, task: Task, record: Record, path: str | None) -> None:
        """Those of the heuristic and the two best are needed again."""
        if path is None:
            return
        task.artifacts.setdefault(record.point, path)
        if task.artifacts[record.point] != path:
            shutil.rmtree(path, ignore_errors=True)
        known = {**task.records, record.point: record}
        ranked = sorted((r for r in known.values() if not r.error), key=lambda r: r.ratio)
        needed = {self._heuristic_point(task), *(r.point for r in ranked[:2])}
        for point in [p for p in task.artifacts if p not in needed]:
            shutil.rmtree(task.artifacts.pop(point), ignore_errors=True)

    def _note(self, task: Task, batch: list[Any], records: list[Record], learnt: list[RunnerResult]) -> None:
        """A batch is measured: on disk first."""
        append(self.log, records)
        before = task.best.ratio if task.best else 1.0
        task.records |= {record.point: record for record in records}
        task.fruitless = 0 if task.best and task.best.ratio < IMPROVEMENT * before else task.fruitless + 1
        task.context.notify_runner_results(batch, learnt)
        self.trials += len(records)
        self.failed += sum(bool(record.error) for record in records)
        self.bar.update(len(records))
        self._show()

    # The end of a task

    def _finish(self, tasks: list[Task]) -> None:
        """Compare the two best once more with the heuristic; what is not clearly faster gives way to it."""
        pending = []
        for task in tasks:
            best = task.best
            if best is None:
                task.exhausted = True
                continue
            if task.context is None:
                self._open(task)
            if best.ratio >= KEPT:
                self._conclude(task, None)
                continue
            ranked = sorted((r for r in task.records.values() if not r.error), key=lambda r: r.ratio)
            finalists = [r for r in ranked[:2] if r.ratio < KEPT and r.point != self._heuristic_point(task)]
            pending.append((task, finalists))
        self._build_finalists(pending)
        running = []
        for task, finalists in pending:
            points = [self._heuristic_point(task), *(record.point for record in finalists)]
            if all(point in task.artifacts for point in points):
                inputs = [runner_input(task.artifacts[point]) for point in points]
                running.append((task, finalists, self._runner.start(inputs, FINAL_TURNS)))
        for task, finalists, futures in running:
            reference, *outcomes = [future.result() for future in futures]
            if reference.error_msg:
                continue
            finals = [
                self._record(_candidate_of(record), None, outcome, reference)
                for record, outcome in zip(finalists, outcomes, strict=True)
            ]
            self._conclude(task, min((r for r in finals if not r.error), key=lambda r: r.ratio, default=None))
        for task in tasks:
            for path in task.artifacts.values():
                shutil.rmtree(path, ignore_errors=True)
            task.artifacts, task.context, task.candidates = {}, None, []
        self._show()

    def _build_finalists(self, pending: list[tuple[Task, list[Record]]]) -> None:
        """Artifacts of an earlier job are gone."""
        missing = []
        for task, finalists in pending:
            wanted = [task.candidates[0], *(_candidate_of(record) for record in finalists)]
            missing += [(task, c) for c in wanted if _point(c) not in task.artifacts]
        if not missing:
            return
        modules = [schedule_of(candidate, placeholder(task.workload)).mod for task, candidate in missing]
        for (task, candidate), result in zip(
            missing, build(self._builder, modules, self.resolved.tvm_target), strict=True
        ):
            if result.artifact_path:
                task.artifacts[_point(candidate)] = str(result.artifact_path)

    def _conclude(self, task: Task, winner: Record | None) -> None:
        if winner is None or winner.ratio >= KEPT:
            candidate, time_us = task.candidates[0], winner.heuristic_us if winner else task.heuristic_us
            rounds = winner.rounds if winner else TURNS
            winner = Record(
                candidate.workload,
                candidate.template,
                candidate.version,
                candidate.knobs,
                self.resolved.mcpu,
                time_us,
                time_us,
                rounds,
                cpu=self.measured_on,
                tvm=tvm.__version__,
                date=_today(),
            )
        extra = {_OPEN: True} if self._is_worthwhile(task) else {}  # trials or time were spent: to be gone on with
        task.final = replace(winner, final=True, extra=extra)
        append(self.log, [task.final])

    def _result(self, stopped: str, seconds: float) -> TuningResult:
        tuned = sum(task.final is not None for task in self.tasks)
        records = tuple(record for task in self.tasks if (record := task.final or task.best))
        return TuningResult(
            len(self.tasks),
            self.tuned_before,
            tuned,
            self.trials,
            self.failed,
            self.speedup(),
            stopped,
            seconds,
            records,
        )


def _learnt(record: Record) -> RunnerResult:
    """What the cost model is told: times relative to the heuristic's."""
    return RunnerResult(None if record.error else [record.ratio], record.error or None)


def _candidate(measure_candidate: Any) -> Candidate:
    return candidate_of(measure_candidate.sch.mod)


def _candidate_of(record: Record) -> Candidate:
    return Candidate(record.workload, record.template, record.version, record.knobs)


def _point(candidate: Candidate) -> tuple[str, str]:
    return candidate.template, json.dumps(candidate.knobs, sort_keys=True)


def _seconds(result: Any) -> list[float]:
    return [float(second) for second in result.run_secs]


def _typical(seconds: Sequence[float]) -> float:
    """The lower quartile: other processes only ever make a turn slower."""
    return float(np.percentile(seconds, 25))


def _paired(seconds: Sequence[float], beside: Sequence[float]) -> float:
    """Time relative to another candidate's, turn by turn: what slows a turn down slows both."""
    return float(np.median([a / b for a, b in zip(seconds, beside, strict=False)]))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:300]


def _today() -> str:
    return datetime.date.today().isoformat()

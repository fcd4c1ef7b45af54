"""A tuning job: rounds of candidates, spent where a network's time is, every result on disk at once."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from tvm_int8.target import ResolvedTarget

from .bench import FINAL_TURNS, TURNS, Bench
from .candidate import Candidate, candidate_of
from .log_file import append, read_log
from .options import Options, TuningResult
from .record import KEPT, Record
from .search import WARM_UP, KnobSearch, Vectorizer, candidates_of, cost_model
from .task import OPEN, Task, speedup, weigh
from .workload import Workload

WORKLOADS_PER_ROUND = 12
FINAL_S = 0.6
"""Seconds that a final comparison takes: kept back when time is limited."""


class Job:
    """Tune workloads for a target.

    Parameters
    ----------
    networks : sequence of (Workload -> int)
        How many layers of each network have a workload.
    resolved : ResolvedTarget
        With the number of threads in its CPU.
    log : path
        Read first, so that what an earlier job measured is not measured again; then appended to.
    options : Options
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
        self.networks, self.resolved, self.log, self.options, self.seeds = networks, resolved, log, options, seeds
        self.tasks = [Task(workload) for workload in dict.fromkeys(w for network in networks for w in network)]
        self._take_over_log()
        self.tuned_before = sum(task.final is not None for task in self.tasks)
        self.bench = Bench(resolved, options, measured_on)
        guided = options.method == "xgboost" and self.tasks
        workloads = [task.workload for task in self.tasks]
        self.model = cost_model(Vectorizer(workloads, resolved.cpu)) if guided else None
        self.trials = self.failed = 0
        self._left = options.trials
        self._interrupted = False

    def run(self) -> TuningResult:
        """Search until there is nothing left worth a trial, or trials or time are spent, or Ctrl-C."""
        started = time.monotonic()
        self._deadline = started + 60 * self.options.minutes if self.options.minutes else math.inf
        with self._interruptible(), self.bench, self._bar():
            try:
                stopped = self._search()
            except BaseException as error:  # on its way through TVM an interrupt becomes some other error
                if not self._interrupted and not isinstance(error, KeyboardInterrupt):
                    raise
                stopped = "interrupted"
        return TuningResult(
            workloads=len(self.tasks),
            tuned_before=self.tuned_before,
            tuned=sum(task.final is not None for task in self.tasks),
            trials=self.trials,
            failed=self.failed,
            speedup=speedup(self.tasks, self.networks),
            stopped=stopped,
            seconds=time.monotonic() - started,
            records=tuple(record for task in self.tasks if (record := task.final or task.best)),
        )

    def _take_over_log(self) -> None:
        if not os.path.exists(self.log):
            return
        by_workload = {task.workload: task for task in self.tasks}
        for record in read_log(self.log).records:
            if record.target == self.resolved.mcpu and record.workload in by_workload:
                by_workload[record.workload].take_over(record)

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
    def _bar(self) -> Iterator[None]:
        layers = sum(count for network in self.networks for count in network.values())
        with tqdm(total=self.options.trials, unit="trial", disable=not self.options.progress) as self.bar:
            if self.options.progress:
                known = f"{len(self.tasks)} workloads in {layers} layers, {self.tuned_before} of them tuned before"
                self.bar.write(f"{known} ({os.fspath(self.log)})", file=sys.stderr)
            self._show()
            yield

    def _show(self) -> None:
        done = sum(task.final is not None for task in self.tasks)
        text = f"{done}/{len(self.tasks)} workloads, {speedup(self.tasks, self.networks):.3f}x"
        if self.failed:
            text += f", {self.failed} failed"
        if self._deadline < math.inf:
            text += f", {max(0.0, self._deadline - time.monotonic()) / 60:.0f} min left"
        self.bar.set_postfix_str(text)

    # Rounds

    def _search(self) -> str:
        while True:
            if time.monotonic() > self._deadline - FINAL_S * len(self._unfinished()):
                stopped = "time"
                break
            if self.trials >= self.options.trials:
                stopped = "trials"
                break
            chosen = self._most_promising()
            if not chosen:
                stopped = "finished"
                break
            self._round(chosen)
            self._finish([task for task in chosen if not task.is_worthwhile])
        remaining = self._unfinished()
        for start in range(0, len(remaining), WORKLOADS_PER_ROUND):
            self._finish(remaining[start : start + WORKLOADS_PER_ROUND])
        return stopped

    def _unfinished(self) -> list[Task]:
        return [task for task in self.tasks if task.final is None and task.best is not None]

    def _most_promising(self) -> list[Task]:
        """Tasks from which most is expected; new ones first of all, since only measuring tells their share."""
        weigh(self.tasks, self.networks)
        open_tasks = [task for task in self.tasks if task.final is None and task.is_worthwhile]
        return sorted(open_tasks, key=lambda task: (bool(task.records), -task.expected))[:WORKLOADS_PER_ROUND]

    def _round(self, tasks: Sequence[Task]) -> None:
        """A batch of each task: all are built, then measured, each beside its task's heuristic."""
        batches = []
        for task in tasks:
            if self._left <= 0:
                break
            self._open(task)
            batch = task.context.generate_measure_candidates()
            if batch is None:
                task.exhausted = True
            else:
                candidates = [candidate_of(measure_candidate.sch.mod) for measure_candidate in batch]
                batches.append((task, list(batch), candidates))
                self._left -= len(candidates)
        self._build_missing([(task, [task.heuristic]) for task, _, _ in batches])
        built = iter(self.bench.build([candidate for _, _, candidates in batches for candidate in candidates]))
        running = []
        for task, batch, candidates in batches:
            paths = [next(built) for _ in candidates]
            heuristic = task.artifacts.get(task.heuristic.point)
            futures = self.bench.start(heuristic, [path for path, _ in paths if path]) if heuristic else []
            running.append((task, batch, candidates, paths, futures))
        for task, batch, candidates, paths, futures in running:
            self._note(task, batch, self._records(task, candidates, paths, futures))

    def _records(
        self, task: Task, candidates: Sequence[Candidate], paths: Sequence[tuple[str | None, str]], futures: list[Any]
    ) -> list[Record]:
        """Wait for a batch; what each candidate came to, its artifact kept if it will be measured again."""
        beside, *outcomes = [future.result() for future in futures] or [None]
        waiting, records = iter(outcomes), {}
        for candidate, (path, error) in zip(candidates, paths, strict=True):
            if beside is None:
                record = self.bench.failure(candidate, "what it is compared with failed: not built")
            elif path is None:
                record = self.bench.failure(candidate, f"not built: {error}")
            else:
                record = self.bench.record(candidate, next(waiting), beside)
            records[record.point] = record
            if path is not None:
                task.keep(record.point, path, task.records | records)
        return list(records.values())

    def _note(self, task: Task, batch: Sequence[Any], records: Sequence[Record]) -> None:
        """A batch is measured: on disk first."""
        append(self.log, records)
        task.note(batch, records)
        self.trials += len(records)
        self.failed += sum(bool(record.error) for record in records)
        self.bar.update(len(records))
        self._show()

    def _open(self, task: Task) -> None:
        if task.context is None:
            seeds = self.seeds.get(task.workload, [])
            candidates = candidates_of(task.workload, self.resolved.cpu, seeds)
            task.open(candidates, len(seeds), self._search_beyond, self.resolved.tvm_target, self.model)

    def _search_beyond(self, known: Mapping[int, Record]) -> KnobSearch:
        return KnobSearch(known, self.options.seed, self._is_warm, lambda: self._left)

    def _is_warm(self) -> bool:
        return self.model is not None and self.model.data_size >= WARM_UP

    def _build_missing(self, wanted: Sequence[tuple[Task, Sequence[Candidate]]]) -> None:
        """Artifacts that are to be measured again, and that an earlier job, or nobody, built."""
        missing = [(task, c) for task, candidates in wanted for c in candidates if c.point not in task.artifacts]
        built = self.bench.build([candidate for _, candidate in missing])
        for (task, candidate), (path, _) in zip(missing, built, strict=True):
            if path:
                task.artifacts[candidate.point] = path

    # The end of a task

    def _finish(self, tasks: Sequence[Task]) -> None:
        """Compare the two best once more with the heuristic; what is not clearly faster gives way to it."""
        pending = []
        for task in tasks:
            self._open(task)
            better = [r for r in task.ranked[:2] if r.ratio < KEPT and r.point != task.heuristic.point]
            if task.best is None:
                task.exhausted = True
            elif better:
                pending.append((task, [Candidate.of(record) for record in better]))
            else:
                self._conclude(task, self.bench.heuristic_record(task.heuristic, task.heuristic_us, TURNS))
        self._build_missing([(task, [task.heuristic, *finalists]) for task, finalists in pending])
        running = []
        for task, finalists in pending:
            heuristic, *others = (task.artifacts.get(c.point, "") for c in (task.heuristic, *finalists))
            if heuristic and all(others):
                running.append((task, finalists, self.bench.start(heuristic, others, FINAL_TURNS)))
        for task, finalists, futures in running:
            beside, *results = [future.result() for future in futures]
            records = [self.bench.record(c, result, beside) for c, result in zip(finalists, results, strict=True)]
            if not beside.error_msg:
                self._choose(task, [record for record in records if not record.error])
        for task in tasks:
            task.close()
        self._show()

    def _choose(self, task: Task, records: Sequence[Record]) -> None:
        """Conclude with the fastest, or with the heuristic."""
        best = min(records, key=lambda record: record.ratio, default=None)
        if best is None or best.ratio >= KEPT:
            time_us = best.heuristic_us if best else task.heuristic_us
            best = self.bench.heuristic_record(task.heuristic, time_us, FINAL_TURNS)
        self._conclude(task, best)

    def _conclude(self, task: Task, record: Record) -> None:
        extra = {OPEN: True} if task.is_worthwhile else {}  # trials or time were spent: to be gone on with
        task.final = replace(record, final=True, extra=extra)
        append(self.log, [task.final])

"""What to measure next: MetaSchedule's cost model and search strategy over the points of a workload's knob spaces."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.knobs import Knobs, KnobSpace
from tvm_int8.schedules.registry import applicable

from .candidate import Candidate, candidate_of
from .record import Record
from .workload import OPS, Workload

METHODS = ("xgboost", "random")
MOST_POINTS = 256
"""Points of a workload that are searched: those that the CPU's model ranks first."""
EXPLORED = 0.15
"""Share of candidates that are drawn at random rather than by the cost model's prediction."""
WARM_UP = 32
"""Measurements from which the cost model's predictions are used."""


def spaces_of(workload: Workload, cpu: Cpu) -> dict[str, KnobSpace]:
    """Return the knob spaces of all templates that can compute a workload, the one that is taken untuned first."""
    spec = workload.spec()
    return {rule.template: rule.knob_space(spec, cpu) for rule in applicable(spec, cpu) if rule.template}


def candidates_of(workload: Workload, cpu: Cpu, first: Iterable[tuple[str, Knobs]] = ()) -> list[Candidate]:
    """Return what can be measured: the heuristic, then `first` as far as it is valid, then by expectation.

    Parameters
    ----------
    workload : Workload
    cpu : Cpu
    first : iterable of (template, knobs)
        What did well elsewhere.
    """
    spec = workload.spec()
    rules = {rule.template: rule for rule in applicable(spec, cpu) if rule.template}
    spaces = {template: rule.knob_space(spec, cpu) for template, rule in rules.items()}
    points = {template: space.points()[: MOST_POINTS // len(spaces)] for template, space in spaces.items()}
    heuristics = [(template, found[0]) for template, found in points.items()]
    wanted = [(t, knobs) for t, knobs in first if t in spaces and spaces[t].objection(knobs) is None]
    rest = [(template, knobs) for template, found in points.items() for knobs in found]
    ordered = [
        Candidate(workload, template, rules[template].version, knobs)
        for template, knobs in [heuristics[0], *wanted, *heuristics, *rest]
    ]
    return list({candidate.point: candidate for candidate in ordered}.values())


class Vectorizer:
    """Candidates as vectors of numbers: sizes of the workload, the template, its knobs and what its model says.

    Names are collected from the spaces that are there when a job begins.
    """

    def __init__(self, workloads: Iterable[Workload], cpu: Cpu):
        self.cpu = cpu
        self._spaces: dict[Workload, dict[str, KnobSpace]] = {}
        names: dict[str, None] = {}
        for template, space in ((t, s) for w in _one_per_kind(workloads) for t, s in spaces_of(w, cpu).items()):
            names |= dict.fromkeys(f"{template}.{name}" for name in self._numbers(space, space.heuristic))
            names[f"is {template}"] = None
        self.names = list(names)

    def __call__(self, candidate: Candidate) -> np.ndarray:
        """Return float32 [features]."""
        workload, template = candidate.workload, candidate.template
        if workload not in self._spaces:
            self._spaces[workload] = spaces_of(workload, self.cpu)
        numbers = self._numbers(self._spaces[workload][template], candidate.knobs)
        values = {f"{template}.{name}": value for name, value in numbers.items()} | {f"is {template}": 1.0}
        own = [values.get(name, 0.0) for name in self.names]
        return np.array([*_sizes(workload), *own], np.float32)

    @staticmethod
    def _numbers(space: KnobSpace, knobs: Knobs) -> dict[str, float]:
        numbers = {}
        for name, value in knobs.items():
            choices = space.choices.get(name, (value,))
            numbers[name] = float(value) if isinstance(value, int) else float(choices.index(value))
        return numbers | {name: math.log2(1 + value) for name, value in space.features(knobs).items()}


def _one_per_kind(workloads: Iterable[Workload]) -> list[Workload]:
    return list({(w.op, w.dtypes, w.kernel, w.block): w for w in workloads}.values())


def _sizes(workload: Workload) -> list[float]:
    w = workload
    logs = [math.log2(size) for size in (*w.data, *w.out, w.groups, w.spec().macs or 1)]
    kinds = [float(w.op == op) for op in OPS] + [float(w.dtypes[0] == "float32"), float(w.block)]
    return [*logs, *w.kernel, *w.strides, *w.dilation, float(any(w.padding)), *kinds, w.threads]


@derived_object
class _Features(PyFeatureExtractor):
    def __init__(self, vectorizer: Vectorizer):
        super().__init__()
        self.vectorizer = vectorizer

    def extract_from(self, context: Any, candidates: Sequence[MeasureCandidate]) -> list[Any]:
        """One row per candidate."""
        return [tvm.runtime.tensor(self.vectorizer(candidate_of(c.sch.mod))[None]) for c in candidates]


def cost_model(vectorizer: Vectorizer) -> XGBModel:
    """Return MetaSchedule's boosted trees over `vectorizer`'s features; one model learns from all workloads."""
    return XGBModel(
        extractor=_Features(vectorizer), num_warmup_samples=WARM_UP, early_stopping_rounds=10, verbose_eval=0
    )


@derived_object
class KnobSearch(PySearchStrategy):
    """Batches of a workload's design spaces that have not been measured yet, each a point.

    Without a cost model at random. With one, those of which it expects most, and some at random; as long as it has
    learnt too little, in the order of the design spaces. The first design space, the heuristic, always comes first.

    Parameters
    ----------
    done : iterable of int
        Design spaces that have been measured before.
    seed : int
    is_warm : callable
        Whether the cost model has learnt enough for its predictions to be used.
    budget : callable
        How many candidates the job may still measure.
    """

    def __init__(
        self,
        done: Iterable[int] = (),
        seed: int = 0,
        is_warm: Callable[[], bool] = lambda: True,
        budget: Callable[[], int] = lambda: MOST_POINTS,
    ):
        super().__init__()
        self.done, self.random, self.is_warm, self.budget = set(done), random.Random(seed), is_warm, budget
        self.context: Any = None

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.context = context

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        """Take the design spaces, the size of a batch and the cost model."""
        self.candidates = [MeasureCandidate(schedule, []) for schedule in design_spaces]
        self.batch, self.left, self.model = num_trials_per_iter, max_trials, cost_model
        self.batches: list[list[int]] = []

    def post_tuning(self) -> None:
        """Forget them."""
        self.candidates = []

    def generate_measure_candidates(self) -> list[MeasureCandidate] | None:
        """Return the next batch; None when all is measured."""
        open_points = [i for i in range(len(self.candidates)) if i not in self.done]
        count = min(self.batch, self.left, self.budget())
        if not open_points or count <= 0:
            return None
        chosen = self._choose(open_points, count)
        self.batches.append(chosen)
        return [self.candidates[i] for i in chosen]

    def notify_runner_results(self, measure_candidates: Any, results: Any) -> None:
        """Note that the last batch is measured, and let the cost model learn from it."""
        chosen = self.batches.pop(0)
        self.done |= set(chosen)
        self.left -= len(chosen)
        if self.model is not None:
            self.model.update(self.context, measure_candidates, results)

    def clone(self) -> Any:
        """Return a search that has the same behind it."""
        return KnobSearch(self.done, is_warm=self.is_warm, budget=self.budget)

    def _choose(self, open_points: list[int], count: int) -> list[int]:
        first = [0] if 0 in open_points else []
        rest = [i for i in open_points if i != 0]
        count -= len(first)
        if self.model is None:
            return first + self.random.sample(rest, min(count, len(rest)))
        if not self.is_warm():
            return first + rest[:count]
        scores = self.model.predict(self.context, [self.candidates[i] for i in rest])
        ranked = [i for _, i in sorted(zip(-np.asarray(scores), rest, strict=True))]
        drawn = sum(self.random.random() < EXPLORED for _ in range(count))
        best, others = ranked[: count - drawn], ranked[count - drawn :]
        return first + best + self.random.sample(others, min(drawn, len(others)))


def learnt(record: Record) -> RunnerResult:
    """Return what the cost model is told of a record: its time relative to the heuristic's."""
    return RunnerResult(None if record.error else [record.ratio], record.error or None)


def tune_context(module: tvm.IRModule, target: tvm.target.Target, search: Any) -> TuneContext:
    """Return MetaSchedule's context of a workload's search."""
    with _without_intrinsics():
        return TuneContext(module, target=target, search_strategy=search, num_threads=1)


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep `TuneContext` from importing TVM's tensor intrinsics: half a minute for what nothing here uses."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def known_points(records: Iterable[Any], candidates: Sequence[Candidate]) -> Mapping[int, Any]:
    """Return index of a candidate -> its record, for those that have been measured."""
    measured = {record.point: record for record in records if not record.final}
    return {i: measured[c.point] for i, c in enumerate(candidates) if c.point in measured}

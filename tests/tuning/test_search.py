"""What is measured next: candidates in order, vectors for the cost model, batches of MetaSchedule's search strategy."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tvm.s_tir.meta_schedule.runner import RunnerResult

from tvm_int8.target import parse_target
from tvm_int8.tuning.candidate import candidate_of, placeholder, schedule_of
from tvm_int8.tuning.record import Record
from tvm_int8.tuning.search import (
    MOST_POINTS,
    WARM_UP,
    KnobSearch,
    Vectorizer,
    candidates_of,
    cost_model,
    known_points,
    spaces_of,
    tune_context,
)
from tvm_int8.tuning.workload import Workload

CASCADELAKE = parse_target("llvm -mcpu=cascadelake -num-cores=2")
AMX = parse_target("llvm -mcpu=sapphirerapids -num-cores=2")
INT8, FLOAT32 = ("uint8", "int8", "uint8"), ("float32",) * 3


def workload_of(op="conv2d", c=64, o=96, size=14, kernel=3, groups=1, dtypes=INT8):
    data, out = (1, c, size, size), (1, o, size, size)
    padding = (kernel // 2,) * 4
    return Workload(op, data, out, (kernel, kernel), (1, 1), padding, (1, 1), groups, 16, dtypes, 2)


CONV = workload_of()
WORKLOADS = {
    "3x3": CONV,
    "1x1": workload_of(kernel=1),
    "dense": workload_of("dense", 100, 200, 1, 1),
    "depthwise": workload_of("depthwise_conv2d", 64, 64, groups=64),
    "float32": workload_of(dtypes=FLOAT32),
}


def point(candidate):
    return candidate.template, tuple(sorted(candidate.knobs.items()))


def is_sorted_from_heuristic(candidates, target):
    template, space = next(iter(spaces_of(candidates[0].workload, target.cpu).items()))
    return (candidates[0].template, candidates[0].knobs) == (template, space.heuristic)


# Candidates


@pytest.mark.parametrize("target", [CASCADELAKE, AMX], ids=lambda target: target.mcpu)
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_candidates(workload, target):
    candidates = candidates_of(workload, target.cpu)
    spaces = spaces_of(workload, target.cpu)
    assert is_sorted_from_heuristic(candidates, target)
    assert len(set(map(point, candidates))) == len(candidates) <= MOST_POINTS
    assert {candidate.template for candidate in candidates} == set(spaces)
    assert all(spaces[c.template].objection(c.knobs) is None for c in candidates)
    assert all(candidate.workload == workload for candidate in candidates)


def test_every_template_shows_its_heuristic_early():
    spaces = spaces_of(CONV, AMX.cpu)
    assert list(spaces) == ["conv2d_amx", "conv2d"]
    first = [(c.template, c.knobs) for c in candidates_of(CONV, AMX.cpu)[:2]]
    assert first == [(template, space.heuristic) for template, space in spaces.items()]


def test_seeds_come_after_the_heuristic_if_they_are_valid():
    plain = candidates_of(CONV, CASCADELAKE.cpu)
    good = [plain[7].knobs, plain[3].knobs]
    seeds = [
        ("conv2d", {**good[0], "ow_tile": 1000}),
        ("conv2d", good[0]),
        ("conv2d", {}),
        ("conv2d_amx", {"order": "pixels", "chunk": 1, "panels": 1, "strip": 0, "part": 0}),
        ("winograd", good[0]),
        ("conv2d", good[1]),
        ("conv2d", good[0]),
        ("conv2d", plain[0].knobs),
    ]
    candidates = candidates_of(CONV, CASCADELAKE.cpu, seeds)
    assert [c.knobs for c in candidates[:3]] == [plain[0].knobs, *good]
    assert sorted(map(point, candidates)) == sorted(map(point, plain))


# Vectors


@pytest.mark.parametrize("target", [CASCADELAKE, AMX], ids=lambda target: target.mcpu)
def test_vectors(target):
    """All of one length, finite, and different for different candidates of a workload."""
    vectorizer = Vectorizer(WORKLOADS.values(), target.cpu)
    assert len(set(vectorizer.names)) == len(vectorizer.names)
    lengths = set()
    for workload in WORKLOADS.values():
        vectors = np.stack([vectorizer(candidate) for candidate in candidates_of(workload, target.cpu)])
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        assert len(np.unique(vectors, axis=0)) == len(vectors)
        lengths.add(vectors.shape[1])
    assert len(lengths) == 1


def test_vectors_of_workloads_differ():
    vectorizer = Vectorizer(WORKLOADS.values(), CASCADELAKE.cpu)
    others = [CONV, replace(CONV, threads=1), workload_of(c=80), workload_of(o=112), workload_of(size=20)]
    vectors = [vectorizer(candidates_of(workload, CASCADELAKE.cpu)[0]) for workload in others]
    assert len(np.unique(np.stack(vectors), axis=0)) == len(others)


# Search


class Trial:
    """A search over a workload's candidates as a job makes it, measured by `time_of`."""

    def __init__(self, workload=CONV, batch=8, time_of: Callable = lambda candidate: 1.0, model=None, **options):
        self.time_of, self.model = time_of, model
        self.candidates = candidates_of(workload, CASCADELAKE.cpu)
        module = placeholder(workload)
        schedules = [schedule_of(candidate, module) for candidate in self.candidates]
        search = KnobSearch(is_warm=lambda: model is not None and model.data_size >= WARM_UP, **options)
        self.context = tune_context(module, CASCADELAKE.tvm_target, search)
        self.context.pre_tuning(len(schedules), batch, design_spaces=schedules, cost_model=model)

    def step(self):
        """Measure the next batch; return its candidates."""
        batch = self.context.generate_measure_candidates()
        if batch is None:
            return None
        candidates = [candidate_of(measure_candidate.sch.mod) for measure_candidate in batch]
        results = [RunnerResult([self.time_of(candidate)], None) for candidate in candidates]
        self.context.notify_runner_results(batch, results)
        return candidates

    def run(self, steps=1000):
        """Measure this many batches, or all there are."""
        batches = []
        while len(batches) < steps and (batch := self.step()) is not None:
            batches.append(batch)
        return batches


def test_search_measures_everything_once():
    trial = Trial()
    batches = trial.run()
    assert {len(batch) for batch in batches[:-1]} == {8}
    found = [candidate for batch in batches for candidate in batch]
    assert found[0] == trial.candidates[0]
    assert len(found) == len(trial.candidates)
    assert set(map(point, found)) == set(map(point, trial.candidates))
    assert trial.step() is None


def test_without_a_model_the_order_is_random_but_for_the_heuristic():
    trial = Trial()
    found = [candidate for batch in trial.run(3) for candidate in batch]
    assert found[0] == trial.candidates[0]
    assert found[1:] != trial.candidates[1 : len(found)]


def test_before_the_model_has_learnt_the_order_is_the_candidates():
    trial = Trial(model=cost_model(Vectorizer([CONV], CASCADELAKE.cpu)))
    found = [candidate for batch in trial.run(WARM_UP // 8) for candidate in batch]
    assert found == trial.candidates[:WARM_UP]


def test_seeds():
    def order(seed):
        return [point(candidate) for batch in Trial(seed=seed).run(4) for candidate in batch]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_what_is_done_is_not_measured_again():
    done = {0, 1, 5, 40}
    trial = Trial(done=done)
    found = {point(candidate) for batch in trial.run() for candidate in batch}
    assert found == {point(c) for i, c in enumerate(trial.candidates) if i not in done}


def test_everything_done():
    assert Trial(done=range(MOST_POINTS)).step() is None


def test_no_batch_is_larger_than_the_budget():
    left = [20]
    trial = Trial(budget=lambda: left[0])
    sizes = []
    while left[0]:
        sizes.append(len(trial.step()))
        left[0] -= sizes[-1]
    assert sizes == [8, 8, 4]


def test_a_clone_does_not_measure_it_either():
    trial = Trial(done=[0, 2, 3])
    copy = trial.context.clone()
    schedules = [schedule_of(candidate, copy.mod) for candidate in trial.candidates[:6]]
    copy.pre_tuning(6, 8, design_spaces=schedules, cost_model=None)
    found = {point(candidate_of(c.sch.mod)) for c in copy.generate_measure_candidates()}
    assert found == {point(trial.candidates[i]) for i in (1, 4, 5)}


def test_the_cost_model_finds_what_is_fast():
    """Times depend on one knob alone; random points are compared with those chosen once the model has learnt."""

    def time_of(candidate):
        return 1.0 + 0.1 * abs(candidate.knobs["oc_tile"] - 5) ** 1.5

    chosen, drawn = [], []
    for seed in range(3):
        trial = Trial(time_of=time_of, model=cost_model(Vectorizer([CONV], CASCADELAKE.cpu)), seed=seed)
        assert len({candidate.knobs["oc_tile"] for candidate in trial.candidates}) > 3
        shuffled = list(
            trial.candidates
        )  # the order of candidates is the CPU model's, which is not that of made-up times
        random.Random(seed).shuffle(shuffled)
        trial.run(WARM_UP // 8)
        measured = [candidate for batch in trial.run(3) for candidate in batch]
        chosen.append(np.mean([time_of(candidate) for candidate in measured]))
        drawn.append(np.mean([time_of(candidate) for candidate in shuffled[: len(measured)]]))
    assert all(c < d for c, d in zip(chosen, drawn, strict=True)), (chosen, drawn)
    assert np.mean(chosen) - 1 < 0.6 * (np.mean(drawn) - 1)


def test_failures_teach_the_model_too():
    trial = Trial(model=cost_model(Vectorizer([CONV], CASCADELAKE.cpu)))
    for _ in range(6):
        batch = trial.context.generate_measure_candidates()
        failed = [RunnerResult(None, "crashed") for _ in batch]
        trial.context.notify_runner_results(batch, failed)
    assert trial.model.data_size == 48
    assert trial.step()


# What earlier jobs measured


def record_of(candidate, **fields):
    values = dict(time_us=10.0, heuristic_us=12.0, rounds=9, target="cascadelake")
    return Record(candidate.workload, candidate.template, candidate.version, candidate.knobs, **{**values, **fields})


def test_known_points():
    candidates = candidates_of(CONV, CASCADELAKE.cpu)
    known = [
        record_of(candidates[4]),
        record_of(candidates[0]),
        record_of(candidates[9], error="crashed", time_us=math.inf),
    ]
    final = record_of(candidates[6], final=True)
    gone = replace(record_of(candidates[2]), knobs={**candidates[2].knobs, "ow_tile": 1000})
    other = replace(record_of(candidates[3]), template="conv2d_amx")
    found = known_points([*known, final, gone, other], candidates)
    assert found == {4: known[0], 0: known[1], 9: known[2]}
    reordered = replace(known[0], knobs=dict(reversed(known[0].knobs.items())))
    assert set(known_points([Record.from_json(reordered.to_json())], candidates)) == {4}

"""Tuning jobs: on a made-up machine whose times are known, then for real, interrupted in every way."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tvm.s_tir.meta_schedule.builder import BuilderResult
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.support import cc

from tests.small_networks import Network
from tvm_int8.target import parse_target
from tvm_int8.tuning import bench, job
from tvm_int8.tuning.build import build, load_artifact, make_builder
from tvm_int8.tuning.candidate import Candidate, candidate_of, placeholder, schedule_of
from tvm_int8.tuning.job import Job
from tvm_int8.tuning.log_file import read_log
from tvm_int8.tuning.measure import Timing
from tvm_int8.tuning.options import Options
from tvm_int8.tuning.record import KEPT
from tvm_int8.tuning.runner import Group, SideBySideRunner, runner_input
from tvm_int8.tuning.search import candidates_of
from tvm_int8.tuning.tune import tune
from tvm_int8.tuning.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
TARGET = parse_target("llvm -mcpu=cascadelake -num-cores=1")
PATIENCE_S = 240
"""For what takes a second on a machine that does nothing else."""


def conv(c=16, o=32, size=8):
    shapes = (1, c, size, size), (1, o, size, size)
    return Workload("conv2d", *shapes, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, ("uint8", "int8", "uint8"), 1)


SMALL, OTHER = conv(), conv(32, 16)


def trials_of(log):
    return [record for record in read_log(log).records if not record.final]


def finals_of(log):
    return [record for record in read_log(log).records if record.final]


def assert_nothing_twice(log):
    counts = Counter((record.workload, record.point) for record in trials_of(log))
    assert set(counts.values()) <= {1}
    counts = Counter(record.workload for record in finals_of(log) if not record.extra.get("open"))
    assert set(counts.values()) <= {1}


def heuristic_of(workload):
    return candidates_of(workload, TARGET.cpu)[0]


# On a made-up machine


class Machine:
    """Builds directories instead of code, and knows how long each candidate takes, or what happens to it."""

    def __init__(self):
        self.time_of = lambda candidate: 1e-3
        self.built, self.measured = [], []
        self.cannot_be_built = lambda candidate: False
        self.before_measuring = lambda: None

    def build(self, directory, modules, _target):
        results = []
        for module in modules:
            candidate = candidate_of(module)
            self.built.append(candidate)
            path = Path(directory, str(len(self.built)))
            path.mkdir()
            (path / "candidate.json").write_text(candidate.to_json())
            failed = self.cannot_be_built(candidate)
            fields = (None, "Traceback:\n  no such loop\n") if failed else (str(path), None)
            results.append(BuilderResult(*fields))
        return results

    def runner(self, *_arguments):
        return self

    def run(self, inputs):
        return self.start(inputs, bench.TURNS)

    def start(self, inputs, turns):
        self.before_measuring()
        futures = []
        for given in inputs:
            candidate = Candidate.from_json(Path(str(given.artifact_path), "candidate.json").read_text())
            self.measured.append(candidate)
            found, future = self.time_of(candidate), Future()
            future.set_result(
                RunnerResult(None, found) if isinstance(found, str) else RunnerResult([found] * turns, None)
            )
            futures.append(future)
        return futures

    def close(self):
        pass


@pytest.fixture
def machine(monkeypatch):
    made_up = Machine()
    monkeypatch.setattr(bench, "make_builder", lambda _resolved, directory, *_: directory)
    monkeypatch.setattr(bench, "build", made_up.build)
    monkeypatch.setattr(bench, "SideBySideRunner", made_up.runner)
    return made_up


def run_job(log, *networks, seeds=(), **options):
    networks = [Counter(network) for network in networks or ([SMALL],)]
    return Job(
        networks, TARGET, log, Options(**{"trials": 40, "progress": False, **options}), dict(seeds), "here"
    ).run()


def by_tile(candidate):
    """Milliseconds that depend on one knob; the heuristic takes at least 1.2."""
    heuristic = candidate == heuristic_of(candidate.workload)
    return 1e-3 * (1.2 if heuristic else 1.0 + 0.05 * abs(candidate.knobs["ow_tile"] - 2))


def test_the_fastest_candidate_is_kept(machine, tmp_path):
    machine.time_of = by_tile
    result = run_job(tmp_path / "log.jsonl", method="random", trials=1000)
    (final,) = finals_of(tmp_path / "log.jsonl")
    assert final.ratio == pytest.approx(min(r.ratio for r in trials_of(tmp_path / "log.jsonl")))
    assert final.ratio < KEPT
    assert result.speedup == pytest.approx(1 / final.ratio, rel=1e-3)
    assert (result.workloads, result.tuned, result.tuned_before, result.failed) == (1, 1, 0, 0)
    assert result.trials == len(trials_of(tmp_path / "log.jsonl"))
    assert result.records[0].point == final.point
    assert result.stopped == "finished"
    assert "1/1 workloads tuned" in str(result)


def test_the_heuristic_is_first_and_every_batch_has_it_beside(machine, tmp_path):
    run_job(tmp_path / "log.jsonl")
    heuristic = heuristic_of(SMALL)
    assert machine.measured[:2] == [heuristic, heuristic]
    records = trials_of(tmp_path / "log.jsonl")
    assert records[0].knobs == heuristic.knobs
    assert records[0].ratio == 1
    assert_nothing_twice(tmp_path / "log.jsonl")


@pytest.mark.parametrize("gain", [0.0, 0.01, -0.5])
def test_the_heuristic_stays_where_nothing_is_clearly_faster(machine, tmp_path, gain):
    machine.time_of = lambda candidate: 1e-3 * (1 if candidate == heuristic_of(SMALL) else 1 - gain)
    result = run_job(tmp_path / "log.jsonl", trials=15)
    (final,) = finals_of(tmp_path / "log.jsonl")
    assert (final.knobs, final.ratio, result.speedup) == (heuristic_of(SMALL).knobs, 1, 1)


def test_a_gain_that_the_last_comparison_does_not_confirm_is_dropped(machine, tmp_path):
    """Trials were lucky; side by side for the last time, with more turns, nothing is left of it."""

    def start(inputs, turns):
        machine.time_of = (lambda candidate: 1e-3) if turns == bench.FINAL_TURNS else by_tile
        return Machine.start(machine, inputs, turns)

    machine.start = start
    run_job(tmp_path / "log.jsonl", trials=15)
    assert min(record.ratio for record in trials_of(tmp_path / "log.jsonl")) < KEPT
    (final,) = finals_of(tmp_path / "log.jsonl")
    assert (final.knobs, final.ratio) == (heuristic_of(SMALL).knobs, 1)


def test_a_finished_job_measures_nothing_again(machine, tmp_path):
    machine.time_of = by_tile
    log = tmp_path / "log.jsonl"
    first = run_job(log, [SMALL, OTHER])
    text, measured = log.read_text(), len(machine.measured)
    second = run_job(log, [SMALL, OTHER])
    assert (second.tuned_before, second.tuned, second.trials, second.stopped) == (2, 2, 0, "finished")
    assert second.speedup == pytest.approx(first.speedup, rel=1e-3)
    assert (log.read_text(), len(machine.measured)) == (text, measured)


def test_trials_are_a_bound_and_the_next_job_goes_on(machine, tmp_path):
    machine.time_of = by_tile
    log = tmp_path / "log.jsonl"
    first = run_job(log, [SMALL, OTHER], trials=5)
    assert (first.trials, first.stopped, first.tuned) == (5, "trials", 1)
    assert len(trials_of(log)) == 5
    second = run_job(log, [SMALL, OTHER], trials=17)
    assert 0 < second.trials <= 17
    assert (second.tuned_before, second.tuned) == (0, 2)  # what the trials did not suffice for is still open
    assert_nothing_twice(log)


def test_time_is_a_bound_and_the_next_job_goes_on(machine, tmp_path):
    log, clock = tmp_path / "log.jsonl", iter(range(0, 10**6, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.time, "monotonic", lambda: next(clock))
        first = run_job(log, [SMALL, OTHER], minutes=1, progress=False)
    assert first.stopped == "time"
    assert 0 < first.trials < 40
    second = run_job(log, [SMALL, OTHER])
    assert (second.tuned_before, second.tuned, second.stopped) == (0, 2, "finished")
    assert_nothing_twice(log)


def test_interrupted_jobs_go_on(machine, tmp_path):
    """What a batch that was on its way would have measured is measured by the next job."""
    log, calls = tmp_path / "log.jsonl", []

    def interrupt():
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt

    machine.before_measuring = interrupt
    first = run_job(log, [SMALL, OTHER])
    assert first.stopped == "interrupted"
    assert first.trials == len(trials_of(log)) > 0
    second = run_job(log, [SMALL, OTHER])
    assert second.tuned == 2
    assert_nothing_twice(log)


def test_failed_candidates_are_noted_and_not_tried_again(machine, tmp_path):
    fates = {1: "crashed", 2: "still running after 60 s", 3: "wrong result: 7 of 2048 values differ from the reference"}
    candidates = candidates_of(SMALL, TARGET.cpu)
    bad = {candidates[i].to_json(): fate for i, fate in fates.items()}
    machine.time_of = lambda candidate: bad.get(candidate.to_json()) or by_tile(candidate)
    machine.cannot_be_built = lambda candidate: candidate == candidates[4]
    log = tmp_path / "log.jsonl"
    result = run_job(log, trials=13)
    failed = {record.point: record.error for record in trials_of(log) if record.error}
    assert sorted(failed.values()) == sorted([*fates.values(), "not built: no such loop"])
    assert (result.failed, result.tuned) == (4, 1)
    assert "4 failed" in str(result)
    assert finals_of(log)[0].point not in failed
    assert all(math.isinf(record.time_us) for record in trials_of(log) if record.error)
    log.write_text("".join(f"{record.to_json()}\n" for record in trials_of(log)))
    run_job(log)
    assert_nothing_twice(log)


@pytest.mark.parametrize("how", ["built", "measured"])
def test_without_the_heuristic_nothing_is_compared(machine, tmp_path, how):
    """The workload ends without a record that counts; others do not suffer."""
    heuristic = heuristic_of(SMALL)
    if how == "built":
        machine.cannot_be_built = lambda candidate: candidate == heuristic
    else:
        machine.time_of = lambda candidate: "crashed" if candidate == heuristic else 1e-3
    log = tmp_path / "log.jsonl"
    result = run_job(log, [SMALL, OTHER], trials=60)
    assert [record.workload for record in finals_of(log)] == [OTHER]
    errors = {record.error for record in trials_of(log) if record.workload == SMALL}
    assert all(error.startswith("what it is compared with failed") for error in errors)
    assert result.tuned == 1
    assert result.failed > 0


def test_what_did_well_elsewhere_comes_second(machine, tmp_path):
    knobs = candidates_of(SMALL, TARGET.cpu)[11].knobs
    run_job(tmp_path / "log.jsonl", seeds={SMALL: [("conv2d", knobs)]}, trials=5)
    assert [record.knobs for record in trials_of(tmp_path / "log.jsonl")[:2]] == [heuristic_of(SMALL).knobs, knobs]


def test_time_goes_where_the_network_spends_its_own(machine, tmp_path):
    machine.time_of = lambda candidate: (1.0 if candidate.workload == SMALL else 1e-4) * by_tile(candidate)
    run_job(tmp_path / "log.jsonl", [SMALL, OTHER], trials=60)
    counts = Counter(record.workload for record in trials_of(tmp_path / "log.jsonl"))
    assert counts[SMALL] > 3 * counts[OTHER]


def test_records_for_other_targets_and_threads_are_left_alone(machine, tmp_path):
    log = tmp_path / "log.jsonl"
    run_job(log)
    records = [
        *(replace(record, target="icelake-server") for record in read_log(log).records),
        *(replace(record, workload=replace(SMALL, threads=2)) for record in read_log(log).records),
    ]
    log.write_text("".join(f"{record.to_json()}\n" for record in records))
    result = run_job(log)
    assert result.tuned_before == 0
    assert len(read_log(log).records) == len(records) + result.trials + 1


def test_no_artifact_stays(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.tempfile, "tempdir", str(tmp_path))
    machine.time_of = by_tile
    most = []
    machine.before_measuring = lambda: most.append(len(list(tmp_path.glob("tvm_int8-tune-*/*"))))
    run_job(tmp_path / "log.jsonl", trials=200)
    assert max(most) < 20
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


# Groups of candidates


class FakeRunner:
    """Finishes groups at once; those with certain artifacts fail as dying workers do, always or some times."""

    timeout_s = 7

    def __init__(self, failures=None, connection=None):
        self.failures, self.connection, self.submitted = dict(failures or {}), connection, []

    def submit(self, paths, rounds):
        self.submitted.append(paths)
        future, errors = Future(), [self.failures[path] for path in paths if self.failures.get(path)]
        if errors:
            future.set_exception(errors[0].pop(0) if isinstance(errors[0], list) else errors[0])
        else:
            future.set_result([Timing([float(len(path))] * rounds) for path in paths])
        return future


def errors_of(runner, *paths):
    group = Group(runner, list(paths), 3)
    assert group.done()
    assert all(bool(timing.seconds) != bool(timing.error) for timing in group.timings())
    return [timing.error for timing in group.timings()]


def test_a_group_is_one_call():
    runner = FakeRunner()
    group = Group(runner, ["a", "bb"], 3)
    assert [timing.seconds for timing in group.timings()] == [[1.0] * 3, [2.0] * 3]
    assert runner.submitted == [["a", "bb"]]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ChildProcessError("Subprocess terminated"), "crashed"),
        (TimeoutError(), "still running after 7 s"),
        (ValueError("Traceback\n  cannot load\n"), "cannot load"),
        (OSError(), "OSError"),
    ],
)
def test_a_candidate_takes_only_itself_down(failure, message):
    runner = FakeRunner({"c": failure})
    assert errors_of(runner, "a", "b", "c", "d") == ["", "", message, ""]
    assert runner.submitted == [["a", "b", "c", "d"], ["a"], ["a", "b"], ["a", "c"], ["a", "d"]]


def test_two_candidates_that_fail():
    failures = {"b": ChildProcessError(), "d": TimeoutError()}
    assert errors_of(FakeRunner(failures), "a", "b", "c", "d") == ["", "crashed", "", "still running after 7 s"]


def test_without_the_first_nothing_is_measured():
    runner = FakeRunner({"a": ChildProcessError()})
    assert errors_of(runner, "a", "b", "c") == ["crashed"] * 3
    assert runner.submitted == [["a", "b", "c"], ["a"]]


def test_machines_of_a_fleet_may_die_of_something_else():
    """A candidate is tried on three of them before it is to blame."""
    runner = FakeRunner({"b": [ChildProcessError(), TimeoutError(), ChildProcessError()]}, connection="tracker")
    assert errors_of(runner, "a", "b") == ["", ""]
    assert runner.submitted == [["a", "b"], ["a"], *[["a", "b"]] * 3]
    runner = FakeRunner({"b": [ChildProcessError() for _ in range(4)]}, connection="tracker")
    assert errors_of(runner, "a", "b") == ["", "crashed"]
    assert runner.submitted == [["a", "b"], ["a"], *[["a", "b"]] * 3]


# For real


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Built candidates: the heuristic, another one, one whose knobs are nonsense."""
    plain = candidates_of(SMALL, TARGET.cpu)
    candidates = [plain[0], plain[1], replace(plain[0], knobs={"ow_tile": 4})]
    modules = [schedule_of(candidate, placeholder(SMALL)).mod for candidate in candidates]
    directory = str(tmp_path_factory.mktemp("artifacts"))
    results = build(make_builder(TARGET, directory, 1), modules, TARGET.tvm_target)
    return candidates, results


@pytest.fixture
def runner():
    side_by_side = SideBySideRunner(rounds=3, timeout_s=PATIENCE_S)
    yield side_by_side
    side_by_side.close()


def test_artifacts(artifacts):
    for candidate, result in list(zip(*artifacts, strict=True))[:2]:
        artifact = load_artifact(str(result.artifact_path))
        assert artifact.candidate == candidate
        assert artifact.copies > 1
        assert Path(artifact.library).is_file()


def test_knobs_that_cannot_be_built(artifacts):
    failed = artifacts[1][2]
    assert not failed.artifact_path
    assert "KeyError" in str(failed.error_msg)


@pytest.mark.isa("avx512vnni")
def test_wrong_results_and_crashes_are_found(artifacts, runner, tmp_path):
    """Also beside each other, and beside candidates that are right."""
    good = [str(result.artifact_path) for result in artifacts[1][:2]]
    wrong, crashing = str(tmp_path / "wrong"), str(tmp_path / "crashing")
    shutil.copytree(good[1], wrong)
    constants = load_artifact(wrong).constants
    np.savez(Path(wrong, "constants.npz"), *[c + 1 if c.dtype == np.int8 else c for c in constants])
    shutil.copytree(good[1], crashing)
    Path(crashing, "sweep.so").unlink()  # else written into, where other tests have it loaded
    source = tmp_path / "crash.c"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n")
    cc.create_shared(str(Path(crashing, "sweep.so")), [str(source)])

    results = [future.result() for future in runner.run([runner_input(path) for path in [*good, wrong]])]
    assert [bool(result.error_msg) for result in results] == [False, False, True]
    assert str(results[2].error_msg).startswith("wrong result: ")
    assert str(results[2].error_msg).endswith(f" of {32 * 8 * 8} values differ from the reference")
    assert len(results[0].run_secs) == 3
    assert all(float(second) > 0 for second in results[0].run_secs)

    results = [future.result() for future in runner.run([runner_input(path) for path in [good[0], crashing, wrong]])]
    assert [str(result.error_msg or "").partition(":")[0] for result in results] == ["", "crashed", "wrong result"]


def command_of(log, trials):
    """A Python process that tunes two workloads."""
    text = f"""
from tvm_int8.tuning.tune import tune
from tvm_int8.tuning.workload import Workload
workloads = [Workload.from_dict(fields) for fields in {json.dumps([SMALL.to_dict(), OTHER.to_dict()])}]
tune(workloads, "cascadelake", {trials}, {str(log)!r}, num_threads=1, progress=False)
"""
    return [sys.executable, "-c", text]


class Process:
    """A process of its own session; nothing of it survives the test."""

    def __init__(self, command, log):
        self.log = log
        self.process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait_for_trials(self, count=1):
        """Until something is on disk."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.log.exists() or self.log.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "nothing was measured"
            time.sleep(0.05)

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.isa("avx512vnni")
def test_a_killed_job_goes_on_where_it_was(tmp_path):
    log = tmp_path / "log.jsonl"
    with Process(command_of(log, 60), log) as killed:
        killed.wait_for_trials()
        workers = killed.children()
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait(PATIENCE_S)
        before = trials_of(log)
        _, alive = psutil.wait_procs(workers, PATIENCE_S)
        assert not alive
    assert 0 < len(before) < 60
    assert not finals_of(log)

    result = tune([SMALL, OTHER], "cascadelake", 12, log, num_threads=1, progress=False)
    assert_nothing_twice(log)
    after = trials_of(log)
    assert after[: len(before)] == before
    assert len(after) == len(before) + result.trials
    assert (result.workloads, result.tuned, result.tuned_before, result.failed) == (2, 2, 0, 0)
    assert 0 < result.trials <= 12
    assert read_log(log).problems == []

    finals = {record.workload: record for record in finals_of(log)}
    assert set(finals) == {SMALL, OTHER}
    assert all(record.ratio <= 1 for record in finals.values())
    for record in finals.values():
        assert record.ratio < KEPT or record.knobs == heuristic_of(record.workload).knobs
    assert result.speedup >= 1
    assert {record.workload: record.point for record in result.records} == {w: r.point for w, r in finals.items()}


@pytest.mark.slow
@pytest.mark.isa("avx512vnni")
def test_ctrl_c_ends_the_command(tmp_path):
    import onnx

    net = Network(x=(1, 16, 8, 8))
    hidden = net.relu(net.conv("x", 32))
    onnx.save(net.finish(net.conv(hidden, 16)), tmp_path / "net.onnx")
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "tvm_int8", "tune", str(tmp_path / "net.onnx"), "--target", "cascadelake"]
    command += ["--log", str(log), "--threads", "1", "--trials", "500", "--quiet"]
    with Process(command, log) as interrupted:
        interrupted.wait_for_trials()
        os.killpg(interrupted.process.pid, signal.SIGINT)  # as a terminal does
        out, err = interrupted.process.communicate(timeout=PATIENCE_S)
    # Python ends by the signal itself, 130 to a shell too, if the interrupt struck within an eval of some text.
    assert interrupted.process.returncode in (130, -signal.SIGINT), err
    assert "interrupted" in out
    assert "Traceback" not in err
    assert read_log(log).problems == []
    assert trials_of(log)

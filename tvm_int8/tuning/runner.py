"""A MetaSchedule runner that times the candidates of a workload side by side, here or on a fleet behind a tracker."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.arg_info import TensorInfo
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RPCConfig, RunnerInput, RunnerResult
from tvm.support.popen_pool import PopenPoolExecutor

from .measure import Timing, measure

TIMEOUT_S = 60.0
_ATTEMPTS_AWAY = 3  # of a candidate on other machines, which may die for reasons of their own
_DEVNULL = -3  # subprocess.DEVNULL: libraries announce themselves on stderr


class Group:
    """Candidates under way: `timings` waits for them. One that crashes or hangs takes only itself down."""

    def __init__(self, runner: Any, paths: list[str], rounds: int):
        self._runner, self._paths, self._rounds = runner, paths, rounds
        self._future: Future = runner.submit(paths, rounds)
        self._timings: list[Timing] | None = None

    def done(self) -> bool:
        """Whether `timings` returns at once."""
        return self._timings is not None or self._future.done()

    def timings(self) -> list[Timing]:
        """What was measured, in the order of the artifacts."""
        if self._timings is None:
            try:
                self._timings = self._future.result()
            except Exception:  # the worker is gone: which of the candidates does that?
                self._timings = self._one_by_one()
        return self._timings

    def _one_by_one(self) -> list[Timing]:
        """Each candidate beside the first, whose time is what others are compared with."""
        first = self._alone(self._paths[:1])[0]
        others = [first if first.error else self._alone([self._paths[0], path])[-1] for path in self._paths[1:]]
        return [first, *others]

    def _alone(self, paths: list[str]) -> list[Timing]:
        attempts = _ATTEMPTS_AWAY if self._runner.connection else 1
        for attempt in range(attempts):
            try:
                return self._runner.submit(paths, self._rounds).result()
            except TimeoutError:
                message = f"still running after {self._runner.timeout_s:g} s"
            except ChildProcessError:
                message = "crashed"
            except Exception as error:
                message = last_line(str(error) or type(error).__name__)
            if attempt == attempts - 1:
                return [Timing(error=message) for _ in paths]
        raise AssertionError


@derived_object
class _Future(PyRunnerFuture):
    """One candidate of a group."""

    def __init__(self, group: Group, index: int):
        super().__init__()
        self.group, self.index = group, index

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self.group.done()

    def result(self) -> RunnerResult:
        """Seconds per turn, or the error."""
        timing = self.group.timings()[self.index]
        return RunnerResult(None, timing.error) if timing.error else RunnerResult(timing.seconds, None)


@derived_object
class SideBySideRunner(PyRunner):
    """Measures what is passed to one call of `run` in turns, in one process on one machine.

    Parameters
    ----------
    connection : RPCConfig, optional
        None: this machine.
    workers : int
        Groups under way at once: 1 here, the number of servers behind a tracker.
    timeout_s : float
        For a group, then for each of its candidates.
    rounds : int
        Turns of each candidate.
    """

    def __init__(
        self, connection: RPCConfig | None = None, workers: int = 1, timeout_s: float = TIMEOUT_S, rounds: int = 7
    ):
        super().__init__()
        self.connection, self.timeout_s, self.rounds = connection, timeout_s, rounds
        self.pool = PopenPoolExecutor(max_workers=workers, timeout=timeout_s, stderr=_DEVNULL)

    def submit(self, paths: list[str], rounds: int) -> Future:
        """Start measuring; the future may raise what a dying worker raises."""
        return self.pool.submit(measure, paths, self.connection, rounds)

    def run(self, runner_inputs: list[RunnerInput]) -> list[PyRunnerFuture]:
        """Start measuring artifacts of one workload, the first being what the others are compared with."""
        return self.start(runner_inputs, self.rounds)

    def start(self, runner_inputs: list[RunnerInput], rounds: int) -> list[PyRunnerFuture]:
        """`run` with another number of turns."""
        group = Group(self, [str(given.artifact_path) for given in runner_inputs], rounds)
        return [_Future(group, index) for index in range(len(runner_inputs))]

    def close(self) -> None:
        """End the worker processes."""
        with contextlib.suppress(AttributeError):  # TVM's pool stumbles over workers that end at the same moment
            self.pool.shutdown(wait=False)


def runner_input(path: str) -> RunnerInput:
    """Return what `run` takes for an artifact, which knows its arguments itself."""
    return RunnerInput(path, "cpu", [TensorInfo("uint8", [1])])


def last_line(text: str) -> str:
    """Return the last line that says something: TVM puts the reason behind its traces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:300]

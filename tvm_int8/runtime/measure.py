"""Timing: a whole run, and every kernel call of one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metadata import KernelRow
from ..report import table

_BUILTIN = "vm.builtin."


@dataclass(frozen=True)
class BenchmarkResult:
    """Times of a module's runs, from inputs in place to outputs in place."""

    median_ms: float
    p90_ms: float
    min_ms: float
    mean_ms: float
    runs: int
    num_threads: int

    @classmethod
    def from_times(cls, times_ns: Sequence[int], num_threads: int) -> BenchmarkResult:
        """Summarise times in nanoseconds."""
        ms = np.asarray(times_ns, np.float64) / 1e6
        p90 = float(np.percentile(ms, 90))
        return cls(float(np.median(ms)), p90, float(ms.min()), float(ms.mean()), len(ms), num_threads)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        times = f"median {self.median_ms:.3f} ms, p90 {self.p90_ms:.3f}, min {self.min_ms:.3f}, mean {self.mean_ms:.3f}"
        return f"{times} ({_count(self.runs, 'run')} on {_count(self.num_threads, 'thread')})"


@dataclass(frozen=True)
class ProfileRow:
    """One kernel call: its layer, kind, median time, multiply-accumulates per second and share of all kernels' time."""

    layer: str
    kernel: str
    us: float
    gmacs_per_s: float
    share: float


@dataclass(frozen=True)
class Profile:
    """A row per kernel call, in the order of the calls, beside the time of a run without timers.

    Parameters
    ----------
    rows : tuple of ProfileRow
        `us` is the median over the runs and has about 0.5 us of the timer in it.
    end_to_end_us : float
        Median time of a whole run without timers.
    activation_bytes : int
        Memory for activations that a run asks of the allocator; weights are not in it.
    runs, num_threads : int
        How it was measured.
    """

    rows: tuple[ProfileRow, ...]
    end_to_end_us: float
    activation_bytes: int
    runs: int
    num_threads: int

    @property
    def kernels_us(self) -> float:
        """Sum of the kernels' times."""
        return sum(row.us for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {**dataclasses.asdict(self), "kernels_us": self.kernels_us}

    def __str__(self) -> str:
        cells = [
            (r.layer, r.kernel, f"{r.us:.1f}", f"{r.gmacs_per_s:.1f}" if r.gmacs_per_s else "", f"{r.share:.1%}")
            for r in self.rows
        ]
        kernels = _count(len(self.rows), "kernel call")
        return "\n".join(
            [
                table(("layer", "kernel", "us", "GMAC/s", "share"), cells, right_aligned={2, 3, 4}),
                f"sum of {kernels} {self.kernels_us:.1f} us; end to end without timers {self.end_to_end_us:.1f} us",
                f"activations {self.activation_bytes / 2**20:.2f} MiB; "
                f"median of {_count(self.runs, 'run')} on {_count(self.num_threads, 'thread')}",
            ]
        )


class KernelClock:
    """An instrument of the VM that notes how long each kernel takes; calls of the VM's builtins are skipped."""

    def __init__(self) -> None:
        self.functions: list[str] = []
        self.times_ns: list[int] = []
        self.activation_bytes = 0
        self._started = 0

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        """Be told of a call, before and after it; 0 lets the VM make it."""
        now = time.perf_counter_ns()
        if name.startswith(_BUILTIN):
            if before and name == "vm.builtin.alloc_storage":
                self.activation_bytes += int(np.prod([int(n) for n in arguments[1]]))
        elif before:
            self.functions.append(name)
            self._started = time.perf_counter_ns()
        else:
            self.times_ns.append(now - self._started)
        return 0


class OutputRecorder:
    """An instrument of the VM that copies what each kernel call writes, its last argument."""

    def __init__(self) -> None:
        self.functions: list[str] = []
        self.outputs: list[np.ndarray] = []

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        """Be told of a call, before and after it; 0 lets the VM make it."""
        if not before and not name.startswith(_BUILTIN):
            self.functions.append(name)
            self.outputs.append(np.from_dlpack(arguments[-1]).copy())
        return 0


def time_runs(run: Callable[[], Any], repeat: int, warmup: int) -> list[int]:
    """Return the nanoseconds that each of `repeat` calls takes, after `warmup` others."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


def check_kernels(functions: Sequence[str], kernels: Sequence[KernelRow]) -> None:
    """Assert that the VM called what the metadata says, in its order."""
    expected = [row.function for row in kernels]
    assert list(functions) == expected, f"the VM called {list(functions)}, the metadata has {expected}"


def make_profile(
    clocks: Sequence[KernelClock], kernels: Sequence[KernelRow], end_to_end_ns: Sequence[int], num_threads: int
) -> Profile:
    """Combine the clocks of several runs with what the metadata knows of each call."""
    for clock in clocks:
        check_kernels(clock.functions, kernels)
    medians = np.median([clock.times_ns for clock in clocks], axis=0) / 1e3
    total = float(medians.sum()) or 1.0
    rows = [
        ProfileRow(row.layer, row.kernel, float(us), row.macs / (float(us) * 1e3) if us else 0.0, float(us) / total)
        for row, us in zip(kernels, medians, strict=True)
    ]
    end_to_end_us = float(np.median(end_to_end_ns)) / 1e3
    return Profile(tuple(rows), end_to_end_us, clocks[0].activation_bytes, len(clocks), num_threads)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

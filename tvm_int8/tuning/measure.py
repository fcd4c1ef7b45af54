"""Candidates of one workload side by side: check every result, then time all in turns. Runs in a worker process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.s_tir.meta_schedule.runner import RPCConfig

from tvm_int8.host import usable_cpus
from tvm_int8.runtime.threads import run_on_threads

from .build import Artifact, load_artifact
from .candidate import Sample, meant_channels

HOPELESS = 1.25
"""Candidates this times slower than the fastest after `HOPELESS_ROUNDS` are not timed any more."""
HOPELESS_ROUNDS = 3
FEWEST_ROUNDS, ROUND_S = 5, 0.1
"""Rounds that are made in any case; others only as long as they take this many seconds on average."""
LEAST_TURN_S = 2e-4
_CPUS = usable_cpus()  # of the process when it began
_BIG_CORES = 1  # TVM's kBig: threads of a pool on the machine's fastest cores


@dataclass
class Timing:
    """What was measured of a candidate: seconds per call, one number a turn; or why there are none."""

    seconds: list[float] = field(default_factory=list)
    error: str = ""


def measure(paths: Sequence[str], connection: RPCConfig | None, rounds: int) -> list[Timing]:
    """Check and time artifacts of one workload, the first of which is never given up.

    Parameters
    ----------
    paths : sequence of str
        Artifacts.
    connection : RPCConfig, optional
        The tracker that knows the machine to run on; None: this machine.
    rounds : int
        Turns of each.
    """
    artifacts = [load_artifact(path) for path in paths]
    machine = _Remote(connection) if connection else _Local()
    try:
        return machine.on_threads(lambda: _measure(artifacts, machine, rounds), artifacts[0].candidate.workload.threads)
    finally:
        machine.close()


class _Local:
    """The machine of the process itself."""

    device = tvm.cpu()

    def load(self, path: str) -> Any:
        return tvm.runtime.load_module(path)

    def on_threads(self, function: Callable[[], Any], threads: int) -> Any:
        os.sched_setaffinity(0, set(_CPUS[-threads:]))  # no wandering from CPU to CPU
        return run_on_threads(function, threads)

    def close(self) -> None:
        pass


class _Remote:
    """A server that a tracker gives."""

    def __init__(self, connection: RPCConfig):
        self.session = connection.connect_server()
        self.device = self.session.cpu()

    def load(self, path: str) -> Any:
        name = f"{os.path.basename(os.path.dirname(path))}.so"
        self.session.upload(path, name)
        return self.session.load_module(name)

    def on_threads(self, function: Callable[[], Any], threads: int) -> Any:
        self.session.get_function("runtime.config_threadpool")(_BIG_CORES, threads)
        return function()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the server may be gone
            self.session.get_function("CloseRPCConnection")()


def _measure(artifacts: list[Artifact], machine: Any, rounds: int) -> list[Timing]:
    sample_data, expected = _sample(artifacts[0])
    data = tvm.runtime.tensor(sample_data, machine.device)
    timings = [Timing() for _ in artifacts]
    turns: list[Callable[[], float] | None] = []
    for artifact, timing in zip(artifacts, timings, strict=True):
        turn, timing.error = _prepare(artifact, expected, data, machine)
        turns.append(turn)
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > rounds * ROUND_S:
            break
        if number == HOPELESS_ROUNDS:
            typical = [float(np.median(t.seconds)) if t.seconds else np.inf for t in timings]
            hopeful = [i == 0 or seconds <= HOPELESS * min(typical) for i, seconds in enumerate(typical)]
            turns = [turn if hope else None for turn, hope in zip(turns, hopeful, strict=True)]
        for turn, timing in zip(turns, timings, strict=True):
            if turn is not None:
                timing.seconds.append(float(turn()))
    return timings


def _prepare(
    artifact: Artifact, expected: np.ndarray, data: Any, machine: Any
) -> tuple[Callable[[], float] | None, str]:
    """Load a candidate and compare its result; return a function that times one turn, or what is wrong."""
    vm = relax.VirtualMachine(machine.load(artifact.library), machine.device)
    constants = [tvm.runtime.tensor(c, machine.device) for _ in range(artifact.copies) for c in artifact.constants]
    out = tvm.runtime.tensor(np.full_like(expected, 0x5A), machine.device)
    vm.set_input("main", data, *constants, out)
    vm.invoke_stateful("main")
    channels = artifact.candidate.workload.out[1]
    delivered = vm.get_outputs("main").numpy()  # through RPC not `out` itself but a copy of it on the other machine
    found, expected = (meant_channels(array, channels) for array in (delivered, expected))
    if not np.array_equal(found, expected):
        wrong = np.count_nonzero(found != expected)
        return None, f"wrong result: {wrong} of {expected.size} values differ from the reference"
    once = vm.time_evaluator("invoke_stateful", machine.device, number=1, repeat=2)("main").min
    evaluator = vm.time_evaluator(
        "invoke_stateful", machine.device, number=max(1, round(LEAST_TURN_S / max(once, 1e-9))), repeat=1
    )
    return lambda: evaluator("main").mean / artifact.copies, ""


def _sample(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Data and result of the artifact's workload, computed once and kept beside its artifacts."""
    workload, folder = artifact.candidate.workload, Path(artifact.library).parent.parent
    kept = folder / f"{hashlib.sha256(str(workload).encode()).hexdigest()}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return arrays["data"], arrays["out"]
    sample = Sample.of(workload)
    partial = kept.with_name(f"{os.getpid()}.npz")
    np.savez(partial, data=sample.data, out=sample.out)
    os.replace(partial, kept)
    return sample.data, sample.out

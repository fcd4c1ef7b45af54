"""How a tuning job is run, and what it says when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir.meta_schedule.runner import RPCConfig

from .record import Record
from .runner import TIMEOUT_S


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

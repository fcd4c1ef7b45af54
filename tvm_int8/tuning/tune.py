"""`tune`: search for the fastest knobs of a network's convolutions and dense layers, on this machine or on a fleet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError, TargetError
from tvm_int8.frontend import load_model
from tvm_int8.host import cpu_model
from tvm_int8.schedules.knobs import Knobs
from tvm_int8.target import ResolvedTarget, missing_features, parse_target

from .fleet import connect
from .job import Job
from .log_file import read_log
from .lookup import shipped_logs, warn_of_problems
from .options import Options, TuningResult
from .runner import TIMEOUT_S
from .search import METHODS
from .tasks import workloads_of
from .workload import Workload

TRIALS_PER_WORKLOAD = 64
LOCAL = "local"
DEFAULT = QuantizationConfig()


def tune(
    model: Any,
    target: Any = "native",
    trials: int | None = None,
    log: str | os.PathLike[str] | None = None,
    runner: str = LOCAL,
    *,
    key: str | None = None,
    minutes: float | None = None,
    num_threads: int | None = None,
    quantization: QuantizationConfig | None = DEFAULT,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    search: str = "xgboost",
    timeout_s: float = TIMEOUT_S,
    seed: int = 0,
    seeds: bool = True,
    progress: bool = True,
) -> TuningResult:
    """Search for the fastest knobs of a network's convolutions and dense layers.

    Every candidate is built in one process and measured in another, beside the kernel that is built without tuning;
    its result is compared with the NumPy reference before it is timed, and what was measured is on disk before the next
    batch begins. A job that was stopped, by whatever, goes on where it was when it is called again with the same log.

    Parameters
    ----------
    model : as for `compile`, or a list of such
        What is to be tuned. Equal workloads of several networks are tuned once. In the list, a `Workload` stands for
        itself, and a ``Counter`` of them for a network with as many layers of each.
    target : str, dict or tvm.target.Target
        As for `compile`.
    trials : int, optional
        Candidates to measure at most; 64 per workload by default. A job ends earlier when no workload promises to save
        a thousandth of its network's time.
    log : path, optional
        Where records are appended, one line of JSON each; by default ``<cpu>.jsonl`` here.
        ``compile(model, tuning_logs=log)`` uses it.
    runner : str
        "local", or the address ``host:port`` of a TVM RPC tracker.
    key : str, optional
        Under which the tracker knows the machines; by default the target's CPU.
    minutes : float, optional
        Time to take at most.
    num_threads : int, optional
        Threads that the kernels run on; by default those of this machine.
    quantization : QuantizationConfig or None
        As for `compile`; None tunes the FP32 network.
    input_shapes : dict of name -> shape, optional
        As for `compile`.
    search : str
        "xgboost", candidates that MetaSchedule's cost model expects most of, or "random".
    timeout_s : float
        After which building or measuring a candidate is given up.
    seed : int
        Of what is drawn at random.
    seeds : bool
        Begin with what did well for the same shapes on other numbers of threads, or on CPUs like this one.
    progress : bool
        Show a bar with the speed-up so far and the time left.

    Returns
    -------
    TuningResult
        ``stopped`` is "interrupted" after Ctrl-C.

    Raises
    ------
    ConfigError, TargetError, ModelError, ArtifactError
        An option is not valid; this machine cannot run the target's code; there is no tracker or no machine behind it;
        the model or the log cannot be read.
    """
    _check("trials", trials is None or _is_count(trials), trials, "a whole number from 1")
    _check("minutes", minutes is None or _is_positive(minutes), minutes, "a positive number")
    _check("num_threads", num_threads is None or _is_count(num_threads), num_threads, "a whole number from 1")
    _check("timeout_s", _is_positive(timeout_s), timeout_s, "a positive number of seconds")
    _check("search", search in METHODS, search, " or ".join(map(repr, METHODS)))
    resolved = parse_target(target)
    if num_threads is not None:
        resolved = replace(resolved, cpu=replace(resolved.cpu, threads=num_threads))
    connection, workers = None, 1
    if runner == LOCAL:
        _check_machine(resolved)
    else:
        connection, workers = connect(runner, key or resolved.mcpu, timeout_s)
    networks = _networks(model, resolved, quantization, input_shapes)
    log = f"{resolved.mcpu}.jsonl" if log is None else os.fspath(log)
    if os.path.exists(log):
        warn_of_problems(read_log(log), stacklevel=3)
    distinct = {workload for network in networks for workload in network}
    options = Options(
        trials or TRIALS_PER_WORKLOAD * max(1, len(distinct)),
        minutes,
        search,
        connection,
        workers,
        timeout_s,
        seed,
        progress,
    )
    measured_on = cpu_model() if connection is None else f"behind tracker {runner}, key {key or resolved.mcpu}"
    return Job(networks, resolved, log, options, _seeds(distinct, log, resolved) if seeds else {}, measured_on).run()


def _networks(model: Any, resolved: ResolvedTarget, quantization: Any, input_shapes: Any) -> list[Counter[Workload]]:
    models = list(model) if isinstance(model, list | tuple) else [model]
    single = Counter(item for item in models if isinstance(item, Workload))
    networks = [single] if single else []
    for item in models:
        if isinstance(item, Counter):
            networks.append(item)
        elif not isinstance(item, Workload):
            networks.append(workloads_of(load_model(item, input_shapes), resolved.cpu, quantization))
    return [
        Counter({replace(workload, threads=resolved.cpu.threads): count for workload, count in network.items()})
        for network in networks
    ]


def _seeds(workloads: set[Workload], log: str, resolved: ResolvedTarget) -> dict[Workload, list[tuple[str, Knobs]]]:
    """What did well for the same shapes: on other numbers of threads, and on CPUs like this one."""
    records = [r for source in shipped_logs(resolved) for found in source.records.values() for r in found[:1]]
    if os.path.exists(log):
        records += read_log(log).best()
    seeds: dict[Workload, list[tuple[str, Knobs]]] = {}
    for record in records:
        if record.final:
            seeds.setdefault(replace(record.workload, threads=0), []).append((record.template, record.knobs))
    return {w: seeds[shape] for w in workloads if (shape := replace(w, threads=0)) in seeds}


def _check_machine(resolved: ResolvedTarget) -> None:
    if missing := missing_features(resolved.features):
        raise TargetError(
            f"tuning for {resolved.mcpu}",
            f"this CPU has no {', '.join(missing)}",
            "a machine that can run the code it measures",
            "tune there, or through a tracker that knows such machines (runner='host:port')",
        )


def _check(option: str, valid: bool, value: Any, expected: str) -> None:
    if not valid:
        raise ConfigError(f"option {option!r}", repr(value), expected, "correct it or leave it out")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")

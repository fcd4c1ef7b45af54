"""Where knobs come from: the user's logs, the log shipped for this CPU, that of the nearest CPU, the heuristic."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..schedules.cpu import Cpu
from ..schedules.knobs import Choice
from ..schedules.registry import rule_of
from ..specs import LANES, Conv2d, Spec
from ..target import ResolvedTarget, parse_target, required_cpu_features, supported_mcpus
from .log_file import SUFFIX, Log, read_log
from .record import KEPT, Record
from .workload import Workload

SHIPPED = "shipped"
"""The value of compile's `tuning_logs` that means the logs of this package."""

_DIRECTORY = Path(__file__).resolve().parent.parent / "tuning_logs"
_SHOWN_PROBLEMS = 3


def shipped_directory() -> Path:
    """Return where this package's logs are: a directory per CPU."""
    in_checkout = Path(__file__).resolve().parents[2] / "tuning_logs"
    return _DIRECTORY if _DIRECTORY.is_dir() else in_checkout


@dataclass(frozen=True)
class Source:
    """The records of one log for one target."""

    name: str
    records: dict[Workload, list[Record]]

    @staticmethod
    def of(name: str, records: Iterable[Record]) -> Source:
        """Records per workload, the one that counts first."""
        by_workload: dict[Workload, list[Record]] = {}
        for record in records:
            if not record.error:
                by_workload.setdefault(record.workload, []).append(record)
        return Source(name, {key: sorted(found, key=Record.rank) for key, found in by_workload.items()})


class Lookup:
    """Answers which template and knobs a spec is to be built with.

    Parameters
    ----------
    sources : sequence of Source
        In the order in which they are asked.
    cpu : Cpu
        What is compiled for, with the number of threads.
    """

    def __init__(self, sources: Sequence[Source], cpu: Cpu):
        self.sources, self.cpu = tuple(sources), cpu

    def __call__(self, spec: Spec) -> Choice | None:
        """Return the choice of the first source that has a usable one; None for the heuristic."""
        workload = Workload.of(spec, self.cpu.threads)
        if workload is None:
            return None
        for source in self.sources:
            for record in [r for alike in _alike(workload) for r in source.records.get(alike, ())]:
                if self._is_usable(record, spec):
                    return Choice(record.template, record.knobs, f"tuned: {source.name}")
        return None

    def times_us(self, spec: Spec) -> dict[str, float]:
        """Return what the best kernel of a spec, tuned for this very target, took on each CPU that measured it.

        Only times of one CPU compare: it is the key, as `Record.cpu` has it, those of the first source first.
        """
        workload = Workload.of(_with_packed(spec), self.cpu.threads)
        times: dict[str, float] = {}
        for source in self.sources:
            for record in source.records.get(workload, ()) if workload is not None else ():
                if record.target == self.cpu.name:
                    times.setdefault(record.cpu, record.time_us)
        return times

    def _is_usable(self, record: Record, spec: Spec) -> bool:
        rule = rule_of(record.template)
        if rule is None or not rule.applies(spec, self.cpu) or not (record.final or record.ratio < KEPT):
            return False
        return rule.knob_space(spec, self.cpu).objection(record.knobs) is None


def _with_packed(spec: Spec) -> Spec:
    """The spec as it will be once layouts are assigned."""
    if spec.inputs[0].block or not isinstance(spec, Conv2d):
        return spec
    return replace(spec, inputs=tuple(replace(t, block=LANES) for t in spec.inputs))


def _alike(workload: Workload) -> list[Workload]:
    """The workload, and the one without positions in 16 bits: how many there are hardly changes what knobs are best."""
    return [workload, replace(workload, wide=0)] if workload.wide else [workload]


def lookup(tuning_logs: Any, resolved: ResolvedTarget) -> Lookup:
    """Return what `compile` asks, given its option.

    Parameters
    ----------
    tuning_logs : "shipped", None, path or sequence of paths
        None asks nobody: every kernel takes its heuristic. Paths are asked before the shipped logs.
    resolved : ResolvedTarget
        With the number of threads in its CPU.

    Raises
    ------
    ConfigError, ArtifactError
        The option is something else; a path cannot be read.
    """
    if tuning_logs is None:
        return Lookup((), resolved.cpu)
    sources: list[Source] = []
    for path in _paths(tuning_logs):
        log = read_log(path)
        warn_of_problems(log)
        sources += _sources_of(Path(path).name, log, resolved)
    sources += shipped_logs(resolved)
    return Lookup(sources, resolved.cpu)


def warn_of_problems(log: Log, stacklevel: int = 4) -> None:
    """Warn of lines that are not used: the first ones, and how many more there are."""
    for problem in log.problems[:_SHOWN_PROBLEMS]:
        warnings.warn(str(problem), stacklevel=stacklevel)
    if (more := len(log.problems) - _SHOWN_PROBLEMS) and more > 0:
        warnings.warn(f"{log.problems[0].path}: {more} more lines that are no records; skipped", stacklevel=stacklevel)


def nearest(target: str | ResolvedTarget, others: Iterable[str], limit: int | None = None) -> list[str]:
    """Return CPUs whose kernels are the same as a CPU's, by ISA, the most similar first.

    Parameters
    ----------
    target : str or ResolvedTarget
        The CPU, by its name in LLVM or with features of its own.
    others : iterable of str
        Names of CPUs.
    """
    resolved = target if isinstance(target, ResolvedTarget) else parse_target(target)
    alike = [other for other in others if _same_isa(parse_target(other).cpu, resolved.cpu)]
    return sorted(alike, key=lambda other: (_distance(resolved.mcpu, other), other))[:limit]


def _same_isa(one: Cpu, other: Cpu) -> bool:
    return (one.dot, one.vector_bits, one.vector_registers, one.amx) == (
        other.dot,
        other.vector_bits,
        other.vector_registers,
        other.amx,
    )


def _distance(one: str, other: str) -> tuple[float, float]:
    """How far two CPUs' caches lie apart, then how many features they do not share."""
    if one == other:
        return -1.0, 0.0
    a, b = parse_target(one).cpu, parse_target(other).cpu
    caches = abs(math.log2(a.l1_bytes / b.l1_bytes)) + abs(math.log2(a.l2_bytes / b.l2_bytes))
    features = set(required_cpu_features(one)), set(required_cpu_features(other))
    return caches, len(features[0] ^ features[1]) / len(features[0] | features[1])


def _paths(tuning_logs: Any) -> list[Any]:
    if isinstance(tuning_logs, str) and tuning_logs == SHIPPED:
        return []
    paths = [tuning_logs] if isinstance(tuning_logs, str | os.PathLike) else tuning_logs
    if not isinstance(paths, list | tuple) or not all(isinstance(p, str | os.PathLike) and os.fspath(p) for p in paths):
        expected = "a path, a list of paths, 'shipped', or None for none"
        raise ConfigError("option 'tuning_logs'", repr(tuning_logs), expected, "pass one of these")
    return [path for path in paths if path != SHIPPED]


def _sources_of(name: str, log: Log, resolved: ResolvedTarget) -> list[Source]:
    """A user's log: its records for this target, then those for others like it."""
    targets = {record.target for record in log.records}
    known = [target for target in targets if target in supported_mcpus()]
    return [
        Source.of(
            name if target == resolved.mcpu else f"{name} ({target})", (r for r in log.records if r.target == target)
        )
        for target in nearest(resolved, known)
    ]


def shipped_logs(resolved: ResolvedTarget) -> list[Source]:
    """Return the shipped logs of a CPU and of the nearest one."""
    directory = shipped_directory()
    names = sorted(path.name for path in directory.iterdir() if path.is_dir() and path.name in supported_mcpus())
    return [
        _shipped_source(
            name, tuple((str(path), path.stat().st_mtime_ns) for path in sorted((directory / name).iterdir()))
        )
        for name in nearest(resolved, names, limit=2)
    ]


@functools.lru_cache(maxsize=16)
def _shipped_source(name: str, files: tuple[tuple[str, int], ...]) -> Source:
    """The records of a directory; read once as long as its files are the same."""
    log = read_log(*(path for path, _ in files if path.endswith(SUFFIX)))
    return Source.of(name, (record for record in log.records if record.target == name))

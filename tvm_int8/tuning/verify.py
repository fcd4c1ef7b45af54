"""Records checked after the fact: their kernels built again, and their results compared with the reference."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby

from tqdm import tqdm

from tvm_int8.target import missing_features, parse_target

from .build import build, make_builder
from .candidate import Candidate, placeholder, schedule_of
from .record import Record
from .runner import SideBySideRunner, last_line, runner_input

_AT_ONCE = 48


def verify(records: Iterable[Record], progress: bool = True) -> Iterator[tuple[Record, str]]:
    """Yield every record with what is wrong with it, or "".

    Records for CPUs whose code this machine cannot run are wrong only if they cannot be built.
    """
    ordered = sorted(records, key=lambda record: record.target)
    runner = SideBySideRunner(rounds=1)
    with tqdm(total=len(ordered), unit="record", disable=not progress) as bar, contextlib.closing(runner):
        for target, group in groupby(ordered, key=lambda record: record.target):
            found = list(group)
            for start in range(0, len(found), _AT_ONCE):
                part = found[start : start + _AT_ONCE]
                yield from zip(part, _errors(target, part, runner), strict=True)
                bar.update(len(part))


def _errors(target: str, records: list[Record], runner: SideBySideRunner) -> list[str]:
    resolved = parse_target(target)
    runs_here = not missing_features(resolved.features)
    with tempfile.TemporaryDirectory(prefix="tvm_int8-verify-") as directory:
        modules = [schedule_of(Candidate.of(record), placeholder(record.workload)).mod for record in records]
        built = build(make_builder(resolved, directory, len(os.sched_getaffinity(0))), modules, resolved.tvm_target)
        errors = []
        for result in built:
            if not result.artifact_path:
                errors.append(f"cannot be built ({last_line(str(result.error_msg))})")
            elif not runs_here:
                errors.append("")
            else:
                (future,) = runner.run([runner_input(str(result.artifact_path))])
                errors.append(str(future.result().error_msg or ""))
    return errors

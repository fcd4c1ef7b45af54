"""Compare shipped records with today's heuristic: those that it overtook give way to it.

    python -m benchmarks.recheck_logs tuning_logs/cascadelake/1_thread.jsonl --target cascadelake

To be run after a change to a heuristic. Both are built anew and timed in turns; the file is replaced at the end. What
was not reached within `--minutes` stays as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tvm_int8.host import cpu_model
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.registry import rule_of
from tvm_int8.target import parse_target
from tvm_int8.tuning.bench import FINAL_TURNS, Bench
from tvm_int8.tuning.candidate import Candidate
from tvm_int8.tuning.log_file import read_log, write_log
from tvm_int8.tuning.options import Options
from tvm_int8.tuning.record import KEPT, Record
from tvm_int8.tuning.search import spaces_of
from tvm_int8.tuning.workload import Workload

_AT_ONCE = 32


def heuristic_of(workload: Workload, cpu: Cpu) -> Candidate:
    """Return what is built for a workload without tuning."""
    template, space = next(iter(spaces_of(workload, cpu).items()))
    rule = rule_of(template)
    assert rule is not None, "its space was just made by it"
    return Candidate(workload, template, rule.version, space.heuristic)


def recheck(bench: Bench, records: Sequence[Record], heuristics: Sequence[Candidate]) -> list[Record]:
    """Measure records of different workloads beside the heuristic; what failed is returned as it was."""
    built = bench.build([*heuristics, *map(Candidate.of, records)])
    pairs = list(zip(built[: len(records)], built[len(records) :], strict=True))
    started = [
        bench.start(heuristic, [candidate], FINAL_TURNS) if heuristic and candidate else None
        for (heuristic, _), (candidate, _) in pairs
    ]
    found = []
    for record, candidate, futures in zip(records, heuristics, started, strict=True):
        if futures is None:
            found.append(record)
            continue
        beside, result = (future.result() for future in futures)
        fresh = bench.record(Candidate.of(record), result, beside)
        if fresh.error:
            tqdm.write(f"{record.workload}: {fresh.error}")
            found.append(record)
        elif fresh.ratio < KEPT:
            found.append(replace(fresh, final=True))
        else:
            found.append(replace(bench.heuristic_record(candidate, fresh.heuristic_us, FINAL_TURNS), final=True))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Recheck one file, the slowest workloads first."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recheck_logs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("--target", required=True, help="what the log was tuned with")
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    log = read_log(arguments.log)
    (threads,) = {record.workload.threads for record in log.records}
    resolved = parse_target(arguments.target)
    resolved = replace(resolved, cpu=replace(resolved.cpu, threads=threads))
    heuristics = {record.workload: heuristic_of(record.workload, resolved.cpu) for record in log.records}
    others = [record for record in log.records if record.point != heuristics[record.workload].point]
    others.sort(key=lambda record: -record.heuristic_us)
    end = time.monotonic() + 60 * arguments.minutes
    newest: dict[Workload, Record] = {}
    with Bench(resolved, Options(trials=1), cpu_model()) as bench, tqdm(total=len(others), unit="record") as bar:
        for start in range(0, len(others), _AT_ONCE):
            if time.monotonic() > end:
                break
            part = others[start : start + _AT_ONCE]
            again = recheck(bench, part, [heuristics[record.workload] for record in part])
            newest |= {record.workload: record for record in again}
            bar.update(len(part))
    stay = sum(record.point != heuristics[workload].point for workload, record in newest.items())
    write_log(arguments.log, [newest.get(record.workload, record) for record in log.records], log.headers)
    print(f"{arguments.log}: {len(newest)} of {len(others)} compared, {stay} stay, {len(newest) - stay} give way")
    return 0


if __name__ == "__main__":
    sys.exit(main())

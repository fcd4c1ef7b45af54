"""The command ``tvm-int8 logs``: lists, merges, reduces, checks and exports tuning logs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from tvm_int8.errors import ConfigError


def add_logs(commands: Any) -> None:
    """Add ``logs`` to the commands."""
    parser = commands.add_parser("logs", help="list, merge, reduce, check and export tuning logs")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(name: str, help: str, run: Callable[[argparse.Namespace], None], output: bool) -> Any:
        added = actions.add_parser(name, help=help)
        added.add_argument("logs", nargs="+", metavar="LOG", help=".jsonl files, or directories of them")
        if output:
            added.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write")
        added.set_defaults(run=run)
        return added

    listed = action("list", "show the best record of each workload", _list, False)
    listed.add_argument("--all", action="store_true", help="every record")
    action("merge", "put all records into one file, each once", _merge, True)
    best = action("best", "keep the best record of each workload", _best, True)
    best.add_argument("--header", action="append", default=[], metavar="TEXT", help="a line that says where it is from")
    action(
        "verify", "build the best records' kernels here and compare their results with the reference", _verify, False
    )
    export = action("export", "write the best records as a table", _export, True)
    export.add_argument("--format", choices=["csv", "json", "markdown"], default="csv")
    for added in actions.choices.values():
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")


_COLUMNS = ("workload", "target", "template", "knobs", "us", "against heuristic", "measured on", "date")


def _read(options: argparse.Namespace) -> Any:
    from tvm_int8.tuning.log_file import read_log

    log = read_log(*options.logs)
    for problem in log.problems:
        print(f"tvm-int8: warning: {problem}", file=sys.stderr)
    return log


def _cells(record: Any) -> tuple[str, ...]:
    knobs = " ".join(f"{name}={value}" for name, value in record.knobs.items())
    time, ratio = ("failed", record.error) if record.error else (f"{record.time_us:.4g}", f"{record.ratio:.3f}")
    return str(record.workload), record.target, record.template, knobs, time, ratio, record.cpu, record.date


def _list(options: argparse.Namespace) -> None:
    from tvm_int8.report import table

    log = _read(options)
    records = log.records if options.all else log.best()
    for header in log.headers:
        print(f"# {header}")
    if records:
        print(table(_COLUMNS[:6], [_cells(record)[:6] for record in records], right_aligned={4, 5}))
    improved = sum(not record.error and record.ratio < 1 for record in records)
    print(f"{len(records)} records, {improved} faster than the heuristic; {len(log.problems)} lines skipped")


def _merge(options: argparse.Namespace) -> None:
    from tvm_int8.tuning.log_file import write_log

    log = _read(options)
    unique = {record.to_json(): record for record in log.records}
    write_log(options.output, unique.values(), dict.fromkeys(log.headers))
    print(f"wrote {options.output} ({len(unique)} of {len(log.records)} records, the others are repetitions)")


def _best(options: argparse.Namespace) -> None:
    from tvm_int8.tuning.log_file import write_log

    log = _read(options)
    records = sorted(log.best(), key=lambda record: (record.target, str(record.workload)))
    write_log(options.output, records, options.header or dict.fromkeys(log.headers))
    print(f"wrote {options.output} ({len(records)} workloads, from {len(log.records)} records)")


def _verify(options: argparse.Namespace) -> None:
    from tvm_int8.tuning.verify import verify

    log = _read(options)
    wrong = 0
    records = log.best()
    for record, error in verify(records):
        if error:
            wrong += 1
            print(f"{record.workload}, {record.template}, {record.target}: {error}")
    print(f"{len(records) - wrong} of {len(records)} records deliver the reference's result")
    if wrong:
        raise ConfigError("tuning logs", f"{wrong} records do not hold here", "kernels that are right", "tune again")


def _export(options: argparse.Namespace) -> None:
    from tvm_int8.tuning.log_file import write_text

    records = _read(options).best()
    rows = [_cells(record) for record in records]
    if options.format == "json":
        text = json.dumps([json.loads(record.to_json()) for record in records], indent=1) + "\n"
    elif options.format == "markdown":
        lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    else:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([_COLUMNS, *rows])
        text = buffer.getvalue()
    write_text(options.output, text)
    print(f"wrote {options.output} ({len(records)} workloads)")

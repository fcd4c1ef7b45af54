"""The commands that have to do with tuning: ``tvm-int8 tune``, ``worker``, ``logs``; see `cli`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from .errors import ConfigError


def add_tune(commands: Any, add_model: Callable[[Any], None], inputs_of: Callable[[Any], dict], count: Any) -> None:
    """Add ``tune`` to the commands."""
    parser = commands.add_parser("tune", help="search for faster knobs of a model's layers")
    add_model(parser)
    parser.add_argument("--target", default="native", help='as for compile; "native" by default')
    parser.add_argument("--log", metavar="FILE.jsonl", help="appended to, and read first; by default <cpu>.jsonl")
    parser.add_argument("--trials", type=count, metavar="N", help="candidates to measure at most; 64 per workload")
    parser.add_argument("--minutes", type=float, metavar="M", help="time to take at most")
    parser.add_argument("--threads", type=count, metavar="N", help="threads that kernels run on; by default all cores")
    parser.add_argument("--float32", action="store_true", help="tune the network as it is without quantisation")
    parser.add_argument("--search", choices=["xgboost", "random"], default="xgboost", help="how candidates are chosen")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for one candidate")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="measure on the machines behind this TVM RPC tracker")
    parser.add_argument("--key", help="under which the tracker knows them; by default the target's CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")

    def run(options: argparse.Namespace) -> None:
        from .config import QuantizationConfig
        from .tuning.fleet import parse_address
        from .tuning.tune import LOCAL, tune

        if options.tracker is not None:
            parse_address(options.tracker, "--tracker")

        inputs = {name: value for name, value in inputs_of(options).items() if name == "input_shapes"}
        result = tune(
            options.model,
            options.target,
            options.trials,
            options.log,
            LOCAL if options.tracker is None else options.tracker,
            key=options.key,
            minutes=options.minutes,
            num_threads=options.threads,
            quantization=None if options.float32 else QuantizationConfig(),
            search=options.search,
            timeout_s=options.timeout,
            seed=options.seed,
            progress=not options.quiet,
            **inputs,
        )
        print(result)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt

    parser.set_defaults(run=run)


def add_worker(commands: Any) -> None:
    """Add ``worker`` to the commands."""
    parser = commands.add_parser("worker", help="measure candidates that other machines' tune commands send")
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="of a running TVM RPC tracker")
    parser.add_argument("--key", required=True, help="to be known by: the CPU's name in LLVM, like znver4")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; whoever reaches it can run code on this machine"
    )

    def run(options: argparse.Namespace) -> None:
        from .tuning.fleet import serve

        serve(options.tracker, options.key, options.host)

    parser.set_defaults(run=run)


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
    from .tuning.log_file import read_log

    log = read_log(*options.logs)
    for problem in log.problems:
        print(f"tvm-int8: warning: {problem}", file=sys.stderr)
    return log


def _cells(record: Any) -> tuple[str, ...]:
    knobs = " ".join(f"{name}={value}" for name, value in record.knobs.items())
    time, ratio = ("failed", record.error) if record.error else (f"{record.time_us:.4g}", f"{record.ratio:.3f}")
    return str(record.workload), record.target, record.template, knobs, time, ratio, record.cpu, record.date


def _list(options: argparse.Namespace) -> None:
    from .report import table

    log = _read(options)
    records = log.records if options.all else log.best()
    for header in log.headers:
        print(f"# {header}")
    if records:
        print(table(_COLUMNS[:6], [_cells(record)[:6] for record in records], right_aligned={4, 5}))
    improved = sum(not record.error and record.ratio < 1 for record in records)
    print(f"{len(records)} records, {improved} faster than the heuristic; {len(log.problems)} lines skipped")


def _merge(options: argparse.Namespace) -> None:
    from .tuning.log_file import write_log

    log = _read(options)
    unique = {record.to_json(): record for record in log.records}
    write_log(options.output, unique.values(), dict.fromkeys(log.headers))
    print(f"wrote {options.output} ({len(unique)} of {len(log.records)} records, the others are repetitions)")


def _best(options: argparse.Namespace) -> None:
    from .tuning.log_file import write_log

    log = _read(options)
    records = sorted(log.best(), key=lambda record: (record.target, str(record.workload)))
    write_log(options.output, records, options.header or dict.fromkeys(log.headers))
    print(f"wrote {options.output} ({len(records)} workloads, from {len(log.records)} records)")


def _verify(options: argparse.Namespace) -> None:
    from .tuning.verify import verify

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
    from .tuning.log_file import write_text

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

"""The command ``tvm-int8 tune``: searches for faster knobs of a model's layers."""

from __future__ import annotations

import argparse
from typing import Any

from .model import add_model, inputs_of, positive


def add_tune(commands: Any) -> None:
    """Add ``tune`` to the commands."""
    parser = commands.add_parser("tune", help="search for faster knobs of a model's layers")
    add_model(parser)
    parser.add_argument("--target", default="native", help='as for compile; "native" by default')
    parser.add_argument("--log", metavar="FILE.jsonl", help="appended to, and read first; by default <cpu>.jsonl")
    parser.add_argument("--trials", type=positive, metavar="N", help="candidates to measure at most; 64 per workload")
    parser.add_argument("--minutes", type=float, metavar="M", help="time to take at most")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads that kernels run on; by default all cores"
    )
    parser.add_argument("--float32", action="store_true", help="tune the network as it is without quantisation")
    parser.add_argument("--search", choices=["xgboost", "random"], default="xgboost", help="how candidates are chosen")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for one candidate")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="measure on the machines behind this TVM RPC tracker")
    parser.add_argument("--key", help="under which the tracker knows them; by default the target's CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")

    def run(options: argparse.Namespace) -> None:
        from tvm_int8.config import QuantizationConfig
        from tvm_int8.tuning.fleet import parse_address
        from tvm_int8.tuning.tune import LOCAL, tune

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

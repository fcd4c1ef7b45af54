"""The command ``tvm-int8 compile``: a model becomes one shared library."""

from __future__ import annotations

import argparse
import os
from typing import Any

import tvm_int8
from tvm_int8.errors import ConfigError

from .config import add_calibration, add_config, config_of
from .model import add_model, inputs_of, positive


def add_compile(commands: Any) -> None:
    """Add ``compile`` to the commands."""
    parser = commands.add_parser("compile", help="compile a model to one shared library")
    add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="NET.so", help="the library to write")
    parser.add_argument(
        "--target", default="native", help='"native" (the default), a CPU like znver4, or "llvm -mcpu=cascadelake"'
    )
    add_calibration(parser)
    add_config(parser)
    parser.add_argument("--bits", metavar="BITS.json", help="what allocate wrote; by default 8 for all")
    parser.add_argument("--float32", action="store_true", help="do not quantise")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads to run on; by default all cores")
    parser.add_argument(
        "--tuning-log", action="append", metavar="FILE.jsonl", help="what tune wrote, asked before the shipped logs"
    )
    parser.add_argument("--untuned", action="store_true", help="ask no tuning log: knobs from a model of the CPU")
    parser.add_argument(
        "--unpacked", action="store_true", help="weights as kernels read them: TVM's runtime alone can run the library"
    )
    parser.add_argument("--report", action="store_true", help="print a line per layer")
    parser.set_defaults(run=_compile)


def _compile(options: argparse.Namespace) -> None:
    bits = {} if options.bits is None else {"bits": tvm_int8.BitAllocation.load(options.bits)}
    config = config_of(options, **bits)
    if options.float32 and (options.calibration or config):
        found = "with --calibration or options of quantisation"
        raise ConfigError("--float32", found, "one or the other", "leave one out")
    if options.untuned and options.tuning_log:
        raise ConfigError("--untuned", "with --tuning-log", "one or the other", "leave one out")
    choices: dict[str, Any] = {"num_threads": options.threads, **inputs_of(options)}
    if options.untuned or options.tuning_log:
        choices["tuning_logs"] = options.tuning_log
    if options.float32:
        choices["quantization"] = None
    elif config:
        choices["quantization"] = config
    module = tvm_int8.compile(options.model, target=options.target, calibration=options.calibration, **choices)
    module.export(options.output, pack_weights=not options.unpacked)
    print(module.report if options.report else module.report.summary)
    print(f"wrote {options.output} ({os.path.getsize(options.output) / 2**20:.1f} MiB, for {module.metadata.mcpu})")

"""The command ``tvm-int8 calibrate``: the ranges of a model's activations, kept in a table."""

from __future__ import annotations

import argparse
from typing import Any

import tvm_int8

from .config import add_config, config_of
from .model import add_model, inputs_of
from .quantize import RUNTIMES, add_runtime


def add_calibrate(commands: Any) -> None:
    """Add ``calibrate`` to the commands."""
    parser = commands.add_parser("calibrate", help="observe the ranges of a model's activations")
    add_model(parser)
    parser.add_argument("data", metavar="DATA.npz", help=".npz with an array of samples per input, or .npy")
    parser.add_argument("-o", "--output", required=True, metavar="TABLE.json", help="the calibration table to write")
    add_config(parser)
    add_runtime(parser, "tvm-int8")
    parser.add_argument("--keep-histograms", action="store_true", help="put the distribution of every tensor into it")
    parser.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> None:
    choices = {"config": config_of(options, **RUNTIMES[options.runtime]), "keep_histograms": options.keep_histograms}
    given = {name: value for name, value in choices.items() if value}
    table = tvm_int8.calibrate(options.model, options.data, **given, **inputs_of(options))
    table.save(options.output)
    print(f"wrote {options.output} ({len(table)} tensors)")

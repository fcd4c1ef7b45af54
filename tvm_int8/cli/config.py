"""Options of quantisation on the command line, the same for every command that quantises."""

from __future__ import annotations

import argparse
from typing import Any

_OPTIONS = ("method", "exclude", "min_sqnr_db", "max_slowdown", "winograd")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add them to a command."""
    from tvm_int8.config import PRESETS, WINOGRAD
    from tvm_int8.quantization.calibrators import calibrator_names

    parser.add_argument("--preset", choices=tuple(PRESETS), help="all options of quantisation at once")
    parser.add_argument("--method", choices=calibrator_names(), help="how ranges are made from calibration data")
    parser.add_argument(
        "--exclude", action="append", metavar="LAYER", help="what stays FP32: a layer, a pattern, a kind of operator"
    )
    parser.add_argument(
        "--min-sqnr-db", type=float, metavar="DB", help="leave layers in FP32 until the outputs are this good"
    )
    parser.add_argument(
        "--max-slowdown", type=float, metavar="SHARE", help="leave layers in FP32 for up to this share more time"
    )
    parser.add_argument("--winograd", choices=WINOGRAD, help="3x3 convolutions by transformed tiles")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add the data that ranges come from, for a command that can do without."""
    parser.add_argument(
        "--calibration", metavar="FILE", help=".npz or .npy with typical inputs, or the table that calibrate wrote"
    )


def given_options(options: argparse.Namespace) -> dict[str, Any]:
    """The single options that were given."""
    return {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}


def config_of(options: argparse.Namespace, **defaults: Any):
    """The config that was asked for: the preset, `defaults`, then single options; None if there are none of these."""
    from tvm_int8.config import QuantizationConfig

    given = given_options(options)
    if not (given or defaults or options.preset):
        return None
    return QuantizationConfig.preset(options.preset or "default", **{**defaults, **given})

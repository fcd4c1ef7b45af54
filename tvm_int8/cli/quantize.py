"""The command ``tvm-int8 quantize``: a QDQ ONNX model for other runtimes."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .config import add_calibration, add_config, config_of
from .model import add_model, inputs_of

RUNTIMES: dict[str, dict[str, Any]] = {
    "onnxruntime": {"per_channel_activations": False, "plain_convolutions": True},
    "openvino": {"per_channel_activations": False},
    "tvm-int8": {},
}
"""Options of quantisation by the runtime that is to compute in INT8, where its demands cost accuracy."""


def add_quantize(commands: Any) -> None:
    """Add ``quantize`` to the commands."""
    parser = commands.add_parser("quantize", help="quantise a model to QDQ ONNX, for any runtime")
    add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="INT8.onnx", help="the model to write")
    add_calibration(parser)
    add_config(parser)
    add_runtime(parser, "onnxruntime")

    def run(options: argparse.Namespace) -> None:
        import tvm_int8
        from tvm_int8.config import QuantizationConfig

        config = config_of(options, **RUNTIMES[options.runtime]) or QuantizationConfig()
        quantized = tvm_int8.quantize(options.model, options.calibration, config, **inputs_of(options))
        quantized.to_onnx(options.output)
        print(f"wrote {options.output} ({os.path.getsize(options.output) / 2**20:.1f} MiB, for {options.runtime})")

    parser.set_defaults(run=run)


def add_runtime(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option ``--runtime`` to a command."""
    parser.add_argument(
        "--runtime",
        choices=list(RUNTIMES),
        default=default,
        help=f"what the quantised model is for, {default} by default; for onnxruntime most is rounded",
    )

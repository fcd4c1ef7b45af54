"""The command ``tvm-int8 finetune``: trains a model for the bits it is given."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .config import add_config, config_of
from .model import add_model, inputs_of, positive


def add_finetune(commands: Any) -> None:
    """Add ``finetune`` to the commands."""
    parser = commands.add_parser("finetune", help="train a quantised model, with the rounding it has (needs PyTorch)")
    add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="TUNED.onnx", help="the QDQ model to write")
    parser.add_argument("--calibration", required=True, metavar="FILE", help=".npz or .npy with typical inputs")
    parser.add_argument("--data", required=True, metavar="FILE", help=".npz or .npy with training inputs")
    parser.add_argument("--labels", metavar="LABELS.npy", help="their classes; by default the FP32 network teaches")
    parser.add_argument("--bits", metavar="BITS.json", help="what BitAllocation.save wrote; by default 8 for all")
    parser.add_argument("--epochs", type=positive, metavar="N", help="how often every input is seen")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="share of its range a weight moves by")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="inputs in a step")
    parser.add_argument("--checkpoint", metavar="FILE", help="where to keep the state, and to go on from")
    parser.add_argument("--no-resume", action="store_true", help="begin anew, whatever the checkpoint says")
    add_config(parser)

    def run(options: argparse.Namespace) -> None:
        import tvm_int8
        from tvm_int8.config import QuantizationConfig

        bits = {} if options.bits is None else {"bits": tvm_int8.BitAllocation.load(options.bits)}
        config = config_of(options, **bits) or QuantizationConfig()
        quantized = tvm_int8.quantize(options.model, options.calibration, config, **inputs_of(options))
        names = ("epochs", "learning_rate", "batch_size", "checkpoint")
        choices = {name: value for name in names if (value := getattr(options, name)) is not None}
        found = tvm_int8.finetune(quantized, options.data, options.labels, resume=not options.no_resume, **choices)
        found.to_onnx(options.output)
        print(f"loss by epoch: {' '.join(f'{loss:.4g}' for loss in found.losses)}")
        print(f"wrote {options.output} ({os.path.getsize(options.output) / 2**20:.1f} MiB)")

    parser.set_defaults(run=run)

"""Arguments that several commands share: a model, its inputs, whole numbers."""

from __future__ import annotations

import argparse
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, and what its inputs are."""
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument(
        "--input-shape",
        action="append",
        type=_named_shape,
        default=[],
        metavar="NAME=1,3,224,224",
        help="where the model leaves dimensions open; once per input",
    )
    parser.add_argument("--input-dtype", choices=["uint8"], help="take images of bytes; by default as the model does")
    parser.add_argument(
        "--input-mean", type=_numbers, metavar="123.7,116.3,103.5", help="of bytes, per channel; what is subtracted"
    )
    parser.add_argument(
        "--input-std", type=_numbers, metavar="58.4,57.1,57.4", help="of bytes, per channel; what is divided by"
    )


def inputs_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the inputs, as `tvm_int8.compile` takes it."""
    choices: dict[str, Any] = {name: getattr(options, name) for name in ("input_dtype", "input_mean", "input_std")}
    choices["input_shapes"] = dict(options.input_shape) if options.input_shape else None
    return {name: value for name, value in choices.items() if value is not None}


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``data=1,3,224,224`` -> ("data", (1, 3, 224, 224)); names may contain ``=``."""
    name, _, shape = text.rpartition("=")
    try:
        dims = tuple(int(dim) for dim in shape.split(","))
    except ValueError:
        dims = ()
    if not name or not dims or min(dims) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=1,3,224,224")
    return name, dims


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 123.7,116.3,103.5") from None


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)

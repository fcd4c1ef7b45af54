"""The command ``tvm-int8 allocate``: gives every layer's weights as many bits as it needs."""

from __future__ import annotations

import argparse
from typing import Any

from .config import add_config, config_of
from .model import add_model, inputs_of, positive


def add_allocate(commands: Any) -> None:
    """Add ``allocate`` to the commands."""
    parser = commands.add_parser("allocate", help="choose how many bits the weights of each layer have")
    add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="BITS.json", help="what compile --bits takes")
    parser.add_argument("--calibration", required=True, metavar="FILE", help=".npz or .npy with typical inputs")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--average-bits", type=float, metavar="BITS", help="per weight")
    goal.add_argument("--max-size-bytes", type=positive, metavar="N", help="of all weights, packed")
    goal.add_argument("--target-sqnr-db", type=float, metavar="DB", help="of the outputs, with as few bits as possible")
    parser.add_argument("--allocation", metavar="METHOD", help="optimal (the default), closed_form, greedy or equal")
    parser.add_argument("--activation-bits", type=float, metavar="BITS", help="of activations, on average (default 8)")
    parser.add_argument("--per-channel", action="store_true", help="share each layer's bits among its output channels")
    add_config(parser)

    def run(options: argparse.Namespace) -> None:
        import tvm_int8

        goals = ("average_bits", "max_size_bytes", "target_sqnr_db", "activation_bits")
        given = {name: value for name in goals if (value := getattr(options, name)) is not None}
        if options.allocation is not None:
            given["method"] = options.allocation
        config = config_of(options)
        if config is not None:
            given["quantization"] = config
        shares, inputs = options.per_channel, inputs_of(options)
        found = tvm_int8.allocate_bits(options.model, options.calibration, per_channel=shares, **given, **inputs)
        found.save(options.output)
        print(found)

    parser.set_defaults(run=run)

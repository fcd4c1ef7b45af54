"""The command ``tvm-int8 analyze``: where quantisation error comes from."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .config import add_config, config_of
from .model import add_model, inputs_of, positive


def add_analyze(commands: Any) -> None:
    """Add ``analyze`` to the commands."""
    parser = commands.add_parser("analyze", help="tell layer by layer where quantisation error comes from")
    add_model(parser)
    parser.add_argument("--calibration", required=True, metavar="DATA.npz", help=".npz or .npy with typical inputs")
    add_config(parser)
    parser.add_argument("--target", default="native", help="the CPU whose times count; estimated where it is not here")
    parser.add_argument("--inputs", type=positive, metavar="N", help="inputs to measure noise on, 8 by default")
    parser.add_argument("--html", metavar="REPORT.html", help="write a page with pictures; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="for programs")

    def run(options: argparse.Namespace) -> None:
        import tvm_int8
        from tvm_int8.analysis.html import check_page

        if options.html:
            check_page(options.html)
        config = config_of(options) or tvm_int8.QuantizationConfig()
        choices = {"inputs": options.inputs} if options.inputs else {}
        analysis = tvm_int8.analyze(
            options.model, options.calibration, config, target=options.target, **choices, **inputs_of(options)
        )
        print(json.dumps(analysis.to_dict(), indent=2) if options.json else analysis)
        if options.html:
            analysis.to_html(options.html)
            print(f"wrote {options.html}", file=sys.stderr if options.json else sys.stdout)

    parser.set_defaults(run=run)

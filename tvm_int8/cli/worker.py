"""The command ``tvm-int8 worker``: measures candidates for jobs on other machines."""

from __future__ import annotations

import argparse
from typing import Any


def add_worker(commands: Any) -> None:
    """Add ``worker`` to the commands."""
    parser = commands.add_parser("worker", help="measure candidates that other machines' tune commands send")
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="of a running TVM RPC tracker")
    parser.add_argument("--key", required=True, help="to be known by: the CPU's name in LLVM, like znver4")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; whoever reaches it can run code on this machine"
    )

    def run(options: argparse.Namespace) -> None:
        from tvm_int8.tuning.fleet import serve

        serve(options.tracker, options.key, options.host)

    parser.set_defaults(run=run)

"""The command ``tvm-int8``: parses, calls the public functions, prints. Exit code 0, or 2 for any error."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import tvm_int8
from tvm_int8.errors import TvmInt8Error

from .allocate import add_allocate
from .analyze import add_analyze
from .calibrate import add_calibrate
from .compile import add_compile
from .finetune import add_finetune
from .inspect import add_inspect
from .logs import add_logs
from .quantize import add_quantize
from .run import add_run
from .tune import add_tune
from .worker import add_worker

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0, or 2 after an error, of which one line is on standard error (``--debug`` adds the traceback).
    """
    options = make_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)  # ours; not what developers of libraries are told
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `tvm-int8 inspect net.so | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, TvmInt8Error):
            text = f"unexpected {type(error).__name__}: {text[:300]}; run again with --debug and report it"
        print(f"tvm-int8: error: {text}", file=sys.stderr)
        return _USAGE_ERROR
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each puts a function into ``run``."""
    parser = argparse.ArgumentParser("tvm-int8", description=tvm_int8.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"tvm-int8 {tvm_int8.__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        add_compile,
        add_run,
        add_inspect,
        add_calibrate,
        add_quantize,
        add_allocate,
        add_finetune,
        add_analyze,
        add_tune,
        add_logs,
        add_worker,
    ):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    print(f"tvm-int8: warning: {' '.join(str(message).split())}", file=sys.stderr)

"""What has to be true before anything else of this package is imported: the TVM pair, and where mapped packages are.

Imports nothing but the standard library and `errors`, because it runs first.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from tvm_int8.errors import TvmInt8Error

TVM_VERSION = "0.27.0.post1"
FFI_RELEASE = "0.1.14"
"""A post-release of this one is needed (0.1.14.post0, .post1, ...): with 0.1.15 TVM's Schedule.tensorize segfaults."""

INSTALL = f"pip install 'apache-tvm=={TVM_VERSION}' 'apache-tvm-ffi>={FFI_RELEASE}.post0,<0.1.15'"


class EnvironmentMismatchError(TvmInt8Error, ImportError):
    """The installed packages cannot run this compiler."""


def check_tvm() -> None:
    """Refuse to go on unless the two TVM packages are installed in the versions that work together.

    Raises
    ------
    EnvironmentMismatchError
        One sentence that names what was found, what is needed and the command that installs it.
    """
    tvm, ffi = _installed("apache-tvm"), _installed("apache-tvm-ffi")
    if tvm == TVM_VERSION and ffi is not None and re.fullmatch(rf"{re.escape(FFI_RELEASE)}\.post\d+", ffi):
        return
    raise EnvironmentMismatchError(
        where="import tvm_int8",
        found=f"found apache-tvm {tvm or 'not installed'} with apache-tvm-ffi {ffi or 'not installed'}",
        expected=f"apache-tvm {TVM_VERSION} with a post-release of apache-tvm-ffi {FFI_RELEASE}",
        action=f"run: {INSTALL}",
    )


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


PACKAGE = Path(__file__).parent
_MAPPED = ("passes", "schedules")


def tuning_logs_dir() -> Path:
    """Return the directory of the tuning logs shipped with the package: `<cpu>/*.jsonl`.

    Inside the package when it is installed, beside it in a checkout.
    """
    installed = PACKAGE / "tuning_logs"
    return installed if installed.is_dir() else PACKAGE.parent / "tuning_logs"


class CheckoutFinder:
    """Finds `tvm_int8.passes` and `tvm_int8.schedules` beside the package, where a checkout keeps them.

    An installed package needs no help: there they are inside `tvm_int8/`, or the editable install maps them.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of a mapped package, None for every other name."""
        parent, _, child = name.rpartition(".")
        if parent != "tvm_int8" or child not in _MAPPED:
            return None
        directory = PACKAGE.parent / child
        return importlib.util.spec_from_file_location(
            name, directory / "__init__.py", submodule_search_locations=[str(directory)]
        )


def find_mapped_packages() -> None:
    """Make the mapped packages importable from a plain checkout; does nothing when they are installed."""
    in_checkout = all((PACKAGE.parent / child / "__init__.py").is_file() for child in _MAPPED)
    if in_checkout and not (PACKAGE / "passes").is_dir() and CheckoutFinder not in sys.meta_path:
        sys.meta_path.append(CheckoutFinder)

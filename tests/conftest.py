"""What all tests share: seeded numbers, the `isa` marker, and where optional test data is."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def cpu_features() -> frozenset[str]:
    """Features of this CPU in LLVM's spelling without separators: avx512vnni, avxvnni, amxint8, ..."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        names = flags.group(1).split() if flags else []
    except OSError:
        import cpuinfo

        names = cpuinfo.get_cpu_info().get("flags", [])
    return frozenset(_plain(name) for name in names)


def _plain(feature: str) -> str:
    return re.sub(r"[^a-z0-9]", "", feature.lower())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: processes that share the tests then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `isa("avx512vnni", ...)` on a CPU without one of these features."""
    for marker in item.iter_markers("isa"):
        missing = [name for name in marker.args if _plain(name) not in cpu_features()]
        if missing:
            pytest.skip(f"this CPU has no {', '.join(missing)}")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real trained networks and labelled data; skips where it is missing."""
    path = Path(os.environ.get("TVM_INT8_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no trained networks at {path} (TVM_INT8_TEST_DATA names another place)")
    return path

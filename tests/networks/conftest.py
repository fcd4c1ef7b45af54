"""What the network tests share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def real_models(shared_data: Path) -> ModuleType:
    """The module that lies beside the trained networks and holds their preprocessing and metrics."""
    path = shared_data / "real_models.py"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the trained networks")
    spec = importlib.util.spec_from_file_location("real_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_all() -> Callable:
    """Run an inference function on every input: one flat list of copies of all outputs."""

    def run(infer: Callable, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array(value) for x in inputs for value in infer(x)]

    return run

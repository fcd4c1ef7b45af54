"""The float network on this machine, returning its inner tensors: what calibration and the report's SQNR look at."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8 import pipeline
from tvm_int8.build import lower_and_build
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.quantization.observed_tensors import ObservedTensors
from tvm_int8.runtime.threads import effective_num_threads, run_on_threads
from tvm_int8.target import parse_target


class FloatNetwork:
    """Compiled once for this CPU; called with a batch, returns {tensor name: float32 array} for `names`.

    Parameters
    ----------
    mod : IRModule
        Canonical float module.
    names : sequence of str
        Variables of `main` to observe; names of inputs are returned as given.
    """

    def __init__(self, mod: tvm.IRModule, names):
        self._tensors = ObservedTensors(mod, names)
        resolved = parse_target("native")
        observed = pipeline.observe(self._tensors.names)(mod)
        executable, _, _ = lower_and_build(observed, resolved.tvm_target, resolved.cpu)
        self._skip = len(Dataflow(mod).outputs)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch, input name -> array."""
        arguments = self._tensors.arguments(batch)
        results = run_on_threads(lambda: self._machine["main"](*arguments), effective_num_threads(None))
        return self._tensors.read(list(results)[self._skip :], batch)

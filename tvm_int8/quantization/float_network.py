"""The float network on this machine, returning its inner tensors: what calibration and the report's SQNR look at."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8 import pipeline
from tvm_int8.build import lower_and_build
from tvm_int8.passes.assign_layouts import unpack
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.groups import logical_shape
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
        flow = Dataflow(mod)
        self._inputs = [
            (str(name), param) for name, param in zip(mod["main"].attrs["input_names"], flow.params, strict=True)
        ]
        params = {param.name: name for name, param in self._inputs}
        self._given = [(name, params[name]) for name in names if name in params]
        self._observed = [name for name in names if name not in params]
        self._shapes = {var.name: shape_of(var) for var in flow.producer}
        resolved = parse_target("native")
        executable, _, _ = lower_and_build(pipeline.observe(self._observed)(mod), resolved.tvm_target, resolved.cpu)
        self._skip = len(flow.outputs)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch, input name -> array."""
        arrays = [tvm.runtime.tensor(np.ascontiguousarray(batch[name])) for name, _ in self._inputs]
        results = run_on_threads(lambda: self._machine["main"](*arrays), effective_num_threads(None))
        results = list(results)[self._skip :]
        found = {name: self._plain(name, result) for name, result in zip(self._observed, results, strict=True)}
        return found | {name: batch[given] for name, given in self._given}

    def _plain(self, name: str, result) -> np.ndarray:
        """An observed tensor, packed or not, in its own shape: NumPy unpacks what TVM would need a kernel each for."""
        array, shape = np.from_dlpack(result), self._shapes[name]
        if array.shape == shape:
            return array
        logical = logical_shape(shape)
        assert logical is not None, "only tensors that kernels know are packed"
        return np.ascontiguousarray(unpack(array, logical)).reshape(shape)

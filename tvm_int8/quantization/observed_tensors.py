"""Inner tensors that a compiled network returns behind its outputs (`pipeline.observe`), as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm

from tvm_int8.passes.assign_layouts import unpack
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.groups import logical_shape


class ObservedTensors:
    """Which tensors of a canonical float module are wanted, and how they come back.

    Parameters
    ----------
    mod : IRModule
    names : sequence of str
        Variables of `main`; inputs among them are returned as given.

    Attributes
    ----------
    inputs : list of str
        The network's inputs, in order.
    names : list of str
        What is to be observed: `names` without the inputs.
    shapes : dict
        Of all variables, by name.
    """

    def __init__(self, mod: tvm.IRModule, names: Sequence[str]):
        flow = Dataflow(mod)
        self.inputs = [str(name) for name in mod["main"].attrs["input_names"]]
        params = dict(zip((param.name for param in flow.params), self.inputs, strict=True))
        self._given = {name: params[name] for name in names if name in params}
        self.names = [name for name in names if name not in params]
        self.shapes = {var.name: shape_of(var) for var in (*flow.params, *flow.producer)}

    def arguments(self, batch: Mapping[str, np.ndarray]) -> list:
        """The inputs of a batch as tensors of TVM."""
        return [tvm.runtime.tensor(np.ascontiguousarray(batch[name])) for name in self.inputs]

    def read(self, results: Sequence, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by name, from what the network returned behind its outputs."""
        found = {name: self._plain(name, result) for name, result in zip(self.names, results, strict=True)}
        return found | {name: batch[given] for name, given in self._given.items()}

    def _plain(self, name: str, result) -> np.ndarray:
        """A tensor, packed or not, in its own shape: NumPy unpacks what TVM would need a kernel each for."""
        array, shape = np.from_dlpack(result), self.shapes[name]
        if array.shape == shape:
            return array
        logical = logical_shape(shape)
        assert logical is not None, "only tensors that kernels know are packed"
        return np.ascontiguousarray(unpack(array, logical)).reshape(shape)

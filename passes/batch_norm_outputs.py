"""What batch norms say about a network's data, and where it is once they are folded.

Over the data it was trained on, the output of a batch norm has mean `beta` and standard deviation
`|gamma| * sqrt(var / (var + epsilon))` in each channel. Folding keeps the name of the variable that carries that
output, so names connect the module as imported with the canonical one. A batch norm whose output is gone (a scale or
shift behind it was folded along), whose parameters are not constant, or whose channels are not axis 1 says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow, Expr, const_value, op_name, shape_of
from tvm_int8.passes.equalized_tensors import equalized_tensors


@dataclass(frozen=True)
class BatchNormOutput:
    """Mean and standard deviation of a batch norm's output over the training data, both float64 [C]."""

    mean: np.ndarray
    std: np.ndarray

    def of(self, scale: np.ndarray, shift: np.ndarray) -> BatchNormOutput:
        """The same of a tensor of which the output is `scale * tensor + shift`."""
        return BatchNormOutput((self.mean - shift) / scale, self.std / scale)


def batch_norm_outputs(imported: tvm.IRModule, canonical: tvm.IRModule) -> dict[str, BatchNormOutput]:
    """Find the tensors of a canonical module whose distribution a batch norm knows.

    Parameters
    ----------
    imported : IRModule
        With its batch norms.
    canonical : IRModule
        The same network after `pipeline.canonical_float`, equalised or not.

    Returns
    -------
    dict
        By name of the variable in `canonical`, in order of execution.
    """
    before, known = Dataflow(imported), {}
    for binding in before.bindings:
        if isinstance(binding.value, relax.TupleGetItem) and binding.value.index == 0:
            output = _read(before.value(binding.value.tuple_value))
            if output is not None:
                known[binding.var.name] = (shape_of(binding.var), output)
    found, moved = {}, equalized_tensors(canonical)
    for var in Dataflow(canonical).producer:
        now = moved.get(var.name)
        shape, output = known.get(var.name if now is None else now.name, (None, None))
        if output is not None and shape_of(var) == shape:
            found[var.name] = output if now is None else output.of(now.scale, now.shift)
    return found


def _read(call: Expr) -> BatchNormOutput | None:
    if op_name(call) != "nn.batch_norm" or int(call.attrs.axis) != 1:
        return None
    parameters = [const_value(arg) for arg in call.args[1:5]]
    if any(array is None for array in parameters):
        return None
    gamma, beta, _, var = (array.astype(np.float64) for array in parameters)
    std = np.sqrt(var / (var + float(call.attrs.epsilon)))
    return BatchNormOutput(
        beta if call.attrs.center else np.zeros_like(beta), std * np.abs(gamma) if call.attrs.scale else std
    )

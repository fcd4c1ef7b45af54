"""A whole quantised network in NumPy: kernel orders evaluated one by one, data moved as Relax says.

Takes the module as `passes.order_kernels` leaves it, logical NCHW; compiled integer networks agree with it to the last
bit.  Islands (operators without a kernel) are refused: their arithmetic is TVM's, not this package's.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name, shape_of
from tvm_int8.schedules.rule import Constants

from . import evaluate


def run_network(ordered: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Evaluate a module of kernel orders.

    Parameters
    ----------
    ordered : IRModule
        After OrderKernels.
    inputs : arrays in the order of `main`'s parameters

    Returns
    -------
    list of ndarray
        The model's outputs.
    """
    flow = Dataflow(ordered)
    values = dict(zip(flow.params, inputs, strict=True))

    def value_of(expr):
        return values[expr] if expr in values else const_value(expr)

    for binding in flow.bindings:
        values[binding.var] = _evaluate(binding.value, value_of).reshape(shape_of(binding.var))
    return [value_of(output) for output in flow.outputs]


def _evaluate(call, value_of) -> np.ndarray:
    if is_kernel(call):
        spec = spec_of(call)
        arrays = [value_of(expr).reshape(t.shape) for expr, t in zip(inputs_of(call), spec.inputs, strict=True)]
        return np.ascontiguousarray(evaluate(spec, arrays, Constants.of(constants_of(call))))
    if isinstance(call, relax.Call) and op_name(call) == "reshape":
        return value_of(call.args[0])
    if isinstance(call, relax.Call) and op_name(call) == "permute_dims":
        axes = call.attrs.axes
        return np.ascontiguousarray(
            np.transpose(value_of(call.args[0]), None if axes is None else [int(a) for a in axes])
        )
    raise NotImplementedError(f"an island: {op_name(call)}")

"""Compare a quantised network kernel by kernel: each reads what ONNX Runtime has computed, so nothing adds up."""

from __future__ import annotations

import numpy as np
import onnx
import tvm
from tvm import relax

from tests.frontend.running import run_onnx
from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name, shape_of
from tvm_int8.reference import evaluate
from tvm_int8.schedules.rule import Constants


def layer_differences(model: onnx.ModelProto, ordered: tvm.IRModule, inputs: dict) -> dict[str, np.ndarray]:
    """Layer -> differences of the integers it stores, in units; only layers that are there in both.

    Parameters
    ----------
    model : ModelProto
        With QuantizeLinear or QLinear operators; nodes have names.
    ordered : IRModule
        What `pipeline.order` made of it.
    inputs : dict of name -> array
    """
    theirs = integer_tensors(model, inputs)
    flow, names = Dataflow(ordered), ordered["main"].attrs["layer_names"]
    values = dict(zip(flow.params, inputs.values(), strict=True))
    differences = {}
    for binding in flow.bindings:
        own = _evaluate(binding.value, values).reshape(shape_of(binding.var))
        layer = str(names.get(binding.var.name, ""))
        wanted = theirs.get(layer)
        if own.dtype == np.uint8 and wanted is not None and wanted.size == own.size:
            unsigned = wanted.astype(np.int64) + (128 if wanted.dtype == np.int8 else 0)
            differences[layer] = np.abs(own - unsigned.reshape(own.shape))
            own = unsigned.reshape(own.shape).astype(np.uint8)
        values[binding.var] = own
    return differences


def integer_tensors(model: onnx.ModelProto, inputs: dict) -> dict[str, np.ndarray]:
    """Node -> its 8-bit result in ONNX Runtime, unoptimised."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    results = {name: made.name for made in model.graph.node for name in made.output if name}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in results)
    arrays = run_onnx(exposed, inputs)
    named = zip(results.values(), arrays, strict=True)
    return {layer: array for layer, array in named if array.dtype in (np.int8, np.uint8)}


def _evaluate(call: relax.Call, values: dict) -> np.ndarray:
    def value_of(expr):
        return values[expr] if expr in values else const_value(expr)

    if is_kernel(call):
        spec = spec_of(call)
        arrays = [value_of(expr).reshape(t.shape) for expr, t in zip(inputs_of(call), spec.inputs, strict=True)]
        return np.ascontiguousarray(evaluate(spec, arrays, Constants.of(constants_of(call))))
    data = value_of(call.args[0])
    if op_name(call) == "permute_dims":
        return np.ascontiguousarray(np.transpose(data, [int(axis) for axis in call.attrs.axes]))
    assert op_name(call) == "reshape"
    return data

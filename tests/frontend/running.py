"""Build small ONNX models, run them through the frontend and plain TVM, and compare with ONNX Runtime."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import helper
from tvm import relax

from tests.conftest import cpu_features
from tvm_int8.frontend import load_model

_UNOPTIMISED = {"kind": "llvm", "opt-level": 0}


def graph(nodes, inputs, weights=(), outputs=("y",), opset=17, name="test", value_info=()) -> onnx.ModelProto:
    """A model; `inputs` maps names to a shape (float32) or an array like it, `weights` maps names to arrays.

    `outputs` are names, or map names to dtypes; their shapes stay undeclared.
    """
    declared = [_info(name, value) for name, value in inputs.items()]
    initializers = [onnx.numpy_helper.from_array(np.asarray(array), key) for key, array in dict(weights).items()]
    dtypes = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs, "float32")
    types = {name: helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for name, dtype in dtypes.items()}
    results = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in types.items()]
    proto = helper.make_graph(nodes, name, declared, results, initializers, value_info=value_info)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(proto, opset_imports=domains, ir_version=8)


def _info(name, value):
    if isinstance(value, np.ndarray):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value)


def node(op_type, inputs="x", outputs="y", name="the/node", **attributes):
    """A node; inputs and outputs are given as one string of names."""
    return helper.make_node(op_type, inputs.split(" "), outputs.split(" "), name=name, **attributes)


def one_node(op_type, shape, *constants, opset=17, outputs="y", **attributes) -> onnx.ModelProto:
    """A model of one node whose first input is the graph's and whose others are constants (None: left out)."""
    weights = {f"c{index}": array for index, array in enumerate(constants) if array is not None}
    names = ["x", *(f"c{i}" if array is not None else "" for i, array in enumerate(constants))]
    made = node(op_type, " ".join(names), outputs, **attributes)
    return graph([made], {"x": shape}, weights, outputs.split(" "), opset)


def run_relax(module: tvm.IRModule, feeds) -> list[np.ndarray]:
    """Compile with TVM alone, unoptimised, and run."""
    relax.analysis.well_formed(module)
    with tvm.transform.PassContext(opt_level=0):
        executable = tvm.compile(module, tvm.target.Target(_UNOPTIMISED))
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*[tvm.runtime.tensor(feed) for feed in feeds])
    return [result.numpy()] if isinstance(result, tvm.runtime.Tensor) else [item.numpy() for item in result]


SATURATES = not {"avx512vnni", "avxvnni"} & cpu_features()
"""Without VNNI ONNX Runtime adds two products of uint8 and int8 in 16 bits: int8 weights of 7 bits are exact there."""


def random_weights(rng: np.random.Generator, dtype, shape) -> np.ndarray:
    """Integers over the range in which ONNX Runtime is exact on this CPU."""
    info = np.iinfo(dtype)
    narrow = 2 if SATURATES and dtype is np.int8 else 1
    return rng.integers(info.min // narrow, info.max // narrow, shape, endpoint=True).astype(dtype)


def run_onnx(model, feeds: dict) -> list[np.ndarray]:
    """ONNX Runtime without graph optimisations (and without node names, which it wants unique)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if isinstance(model, onnx.ModelProto):
        anonymous = onnx.ModelProto()
        anonymous.CopyFrom(model)
        for made in anonymous.graph.node:
            made.ClearField("name")
        model = anonymous.SerializeToString()
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def random_feeds(model: onnx.ModelProto, seed=0, scale=1.0) -> dict:
    """Random values for the inputs that are not initialisers."""
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype.kind == "f":
            feeds[value.name] = (rng.normal(size=shape) * scale).astype(dtype)
        else:
            bounds = (0, 2) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            feeds[value.name] = rng.integers(*bounds, size=shape).astype(dtype)
    return feeds


def check(model: onnx.ModelProto, feeds=None, atol=1e-4, rtol=1e-4, reference=None, scale=1.0) -> tvm.IRModule:
    """Import `model`, compare with ONNX Runtime (or `reference`), and return the module."""
    feeds = random_feeds(model, scale=scale) if feeds is None else feeds
    module = load_model(model)
    assert_canonical(module)
    expected = run_onnx(model, feeds) if reference is None else reference
    values = [
        feed.astype(str(parameter.ty.dtype))
        for feed, parameter in zip(feeds.values(), module["main"].params, strict=True)
    ]
    results = run_relax(module, values)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result.astype(np.float64), wanted.astype(np.float64), atol=atol, rtol=rtol)
    return module


def assert_canonical(module: tvm.IRModule) -> None:
    """The invariants every module of the frontend has."""
    assert [var.name_hint for var in module.functions] == ["main"]
    function = module["main"]
    assert len(function.body.blocks) == 1
    assert isinstance(function.body.blocks[0], relax.DataflowBlock)
    assert len(function.attrs["input_names"]) == len(function.params)
    names = [binding.var.name for binding in bindings(module)]
    names += [parameter.name for parameter in function.params]
    assert len(names) == len(set(names))
    assert set(function.attrs["layer_names"]) <= set(names)
    for binding in bindings(module):
        if isinstance(binding.value, tvm.ir.Call):
            assert isinstance(binding.value.op, tvm.ir.Op)
            assert binding.value.op.name.startswith("relax.")


def bindings(module: tvm.IRModule) -> list:
    """The bindings of ``main``."""
    return list(module["main"].body.blocks[0].bindings)


def calls(module: tvm.IRModule, op_name: str) -> list:
    """The calls of ``relax.<op_name>``, in order."""
    values = [binding.value for binding in bindings(module)]
    return [v for v in values if isinstance(v, tvm.ir.Call) and v.op.name == f"relax.{op_name}"]


def op_counts(module: tvm.IRModule) -> dict[str, int]:
    """How often each Relax operator occurs."""
    values = [binding.value for binding in bindings(module)]
    return dict(collections.Counter(v.op.name[len("relax.") :] for v in values if isinstance(v, tvm.ir.Call)))


def layer_names(module: tvm.IRModule) -> dict[str, str]:
    """The attribute of the same name, as Python strings."""
    return {str(name): str(layer) for name, layer in module["main"].attrs["layer_names"].items()}

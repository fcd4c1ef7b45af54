"""A small module built by TVM alone, for tests of the runtime: two kernels, two inputs, two outputs, constants."""

from __future__ import annotations

import dataclasses

import numpy as np
import tvm
from tvm import relax
from tvm.script import tirx as T

from tvm_int8.metadata import KernelRow, LayerRow, Metadata, TensorInfo
from tvm_int8.runtime import CompiledModule
from tvm_int8.target import parse_target

SHAPE = (2, 3, 4)


def build_executable(weight: np.ndarray, mcpu: str = "x86-64-v3"):
    """main(image, offset) = (image * weight + offset, relu of it)."""
    builder = relax.BlockBuilder()
    image = relax.Var("image", relax.TensorType(SHAPE, "float32"))
    offset = relax.Var("offset", relax.TensorType(SHAPE, "uint8"))
    with builder.function("main", [image, offset]):
        with builder.dataflow():
            product = builder.emit(relax.op.multiply(image, relax.const(weight)))
            total = builder.emit(relax.op.add(product, relax.op.astype(offset, "float32")))
            result = builder.emit_output(relax.Tuple([total, relax.op.nn.relu(total)]))
        builder.emit_func_output(result)
    return tvm.compile(builder.get(), target=tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))


def build_module(weight: np.ndarray | None = None, **changes) -> CompiledModule:
    """The module with `changes` to its metadata; runs on any CPU this package supports and many others."""
    weight = np.full(SHAPE, 2, np.float32) if weight is None else weight
    target = parse_target("x86-64-v4")
    names = ["multiply", "cast", "add", "relu"]
    metadata = Metadata(
        inputs=[TensorInfo("data/image:0", SHAPE, "float32"), TensorInfo("offset", SHAPE, "uint8")],
        outputs=[TensorInfo("sum", SHAPE, "float32"), TensorInfo("relu", SHAPE, "float32")],
        target=str(target.tvm_target),
        mcpu=target.mcpu,
        cpu_features=["sse2"],
        layers=[
            LayerRow("layer/conv1", "nn.conv2d", "int8", "conv2d", "tuned", 31.4),
            LayerRow("layer/conv2", "nn.conv2d", "float32", "conv2d", reason="excluded by the user"),
            LayerRow("prob", "nn.softmax", "float32", "softmax"),
        ],
        kernels=[KernelRow(name, f"layer_{name}", name, macs=24, bytes=192) for name in names],
        quantization={"input": {"scale": 0.5}},
    )
    return CompiledModule(build_executable(weight), dataclasses.replace(metadata, **changes))


def build_parallel_module(**changes) -> CompiledModule:
    """main(x) = 2 * x, with a parallel loop."""

    @T.prim_func
    def double(x: T.Buffer((64, 64), "float32"), y: T.Buffer((64, 64), "float32")):
        for i in T.parallel(64):
            for j in T.vectorized(64):
                y[i, j] = x[i, j] * T.float32(2)

    builder = relax.BlockBuilder()
    function = builder.add_func(double.with_attr("global_symbol", "double"), "double")
    x = relax.Var("x", relax.TensorType((64, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.call_tir(function, [x], relax.TensorType((64, 64), "float32")))
        builder.emit_func_output(y)
    executable = tvm.compile(builder.get(), target=tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    info = TensorInfo("x", (64, 64), "float32")
    metadata = Metadata([info], [info], "", "any", kernels=[KernelRow("double", "double", "double")])
    return CompiledModule(executable, dataclasses.replace(metadata, **changes))

"""Quantise small networks with ranges observed in NumPy: no code is generated, so a test takes no time to compile."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import tvm

import tvm_int8
from tests.small_networks import NETWORKS, draw
from tvm_int8 import pipeline
from tvm_int8.cli.quantize import RUNTIMES
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.quantization import ranges
from tvm_int8.quantized_model import QuantizedModel
from tvm_int8.reference.network import run_network


class NumpyNetwork:
    """In place of `FloatNetwork`, for networks without islands."""

    def __init__(self, mod: tvm.IRModule, names):
        self.inputs = [str(name) for name in mod["main"].attrs["input_names"]]
        params = dict(zip((param.name for param in mod["main"].params), self.inputs, strict=True))
        self.given = {name: params[name] for name in names if name in params}
        self.observed = [name for name in names if name not in params]
        self.skip = len(Dataflow(mod).outputs)
        self.ordered = pipeline.order()(pipeline.observe(self.observed)(mod))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = run_network(self.ordered, *(batch[name] for name in self.inputs))[self.skip :]
        return dict(zip(self.observed, results, strict=True)) | {n: batch[given] for n, given in self.given.items()}


def quantize(model: onnx.ModelProto, config=None, calibration=None, **options) -> QuantizedModel:
    """`tvm_int8.quantize` on a few drawn inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        data = draw(model, 2, seed=0) if calibration is None else calibration
        return tvm_int8.quantize(model, data, config or {}, progress=False, **options)


@functools.cache
def small_network(name: str, runtime: str) -> tuple[onnx.ModelProto, QuantizedModel]:
    """One of the small networks and what is made of it for a runtime, once for all tests."""
    model = NETWORKS[name]()
    return model, quantize(model, RUNTIMES[runtime])


def run_qdq(mod: tvm.IRModule, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a module compiled from a QDQ module computes, bit for bit."""
    return run_network(pipeline.order()(mod), *inputs.values())


def imported(model: onnx.ModelProto) -> tvm.IRModule:
    """The canonical module of an ONNX model."""
    return pipeline.canonical_float()(load_model(model))

"""Other runtimes on exported models: they compute what the compiled module computes, and compute it in INT8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.frontend.running import SATURATES
from tests.numpy_calibration import run_qdq, small_network
from tests.small_networks import NETWORKS, draw
from tvm_int8.cli.quantize import RUNTIMES
from tvm_int8.quantization.sqnr import sqnr_db

MIN_SQNR_DB = 50
"""Between the same integers computed by two programs; where one rounds x.5 the other way, all that follows moves."""
INTEGER_OPERATORS = {"QLinearConv", "QGemm", "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearConcat"}
IN_FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm"}


def optimised_by_onnxruntime(model: onnx.ModelProto, path) -> tuple[Callable, Counter]:
    """(inference function, operators after ONNX Runtime's optimisations)."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums of products without VNNI, too
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds), Counter(made.op_type for made in onnx.load(path).graph.node)


def lowest_sqnr_db(model: onnx.ModelProto, mod, infer: Callable) -> float:
    """Of the outputs of a runtime, against those of the kernels."""
    found = []
    for feeds in draw(model, 2, seed=5):
        found += [sqnr_db(*pair) for pair in zip(run_qdq(mod, feeds), infer(feeds), strict=True)]
    return min(found)


@pytest.mark.filterwarnings("ignore:Serializing optimized model")
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_what_the_kernels_compute(name, runtime, tmp_path):
    model, quantized = small_network(name, runtime)
    infer, _ = optimised_by_onnxruntime(quantized.to_onnx(), tmp_path / "optimised.onnx")
    assert lowest_sqnr_db(model, quantized.mod, infer) > MIN_SQNR_DB


FULLY_QUANTISED = ("residual", "mobile", "inception", "shuffle", "dense")


@pytest.mark.parametrize("name", FULLY_QUANTISED)
def test_onnxruntime_computes_in_int8(name, tmp_path):
    """All but convolutions that deliver the network's outputs, which are float."""
    model, quantized = small_network(name, "onnxruntime")
    _, operators = optimised_by_onnxruntime(quantized.to_onnx(), tmp_path / "optimised.onnx")
    layers = sum(made.op_type in ("Conv", "Gemm") for made in model.graph.node)
    outputs = {"inception": 1, "shuffle": 1}.get(name, 0)
    assert sum(operators[op] for op in IN_FLOAT) == outputs, operators
    assert operators["QLinearConv"] + operators["QGemm"] == layers - outputs


@pytest.mark.skipif(SATURATES, reason="without VNNI OpenVINO adds two products in 16 bits")
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["residual", "mobile", "decoder", "shuffle"])
def test_openvino_computes_what_the_kernels_compute(name, runtime):
    openvino = pytest.importorskip("openvino")
    model, quantized = small_network(name, runtime)
    compiled = compile_with_openvino(openvino, quantized.to_onnx())
    request = compiled.create_infer_request()

    def infer(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        request.infer(feeds)
        return [np.array(tensor.data) for tensor in request.output_tensors]

    assert lowest_sqnr_db(model, quantized.mod, infer) > 25


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["residual", "mobile", "inception"])
def test_openvino_computes_in_int8(name, runtime):
    openvino = pytest.importorskip("openvino")
    compiled = compile_with_openvino(openvino, small_network(name, runtime)[1].to_onnx())
    facts = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
    layers = [
        fact["runtimePrecision"].value for fact in facts if fact["layerType"].value in ("Convolution", "FullyConnected")
    ]
    assert layers and set(layers) <= {"u8", "i8"}


def compile_with_openvino(openvino, model: onnx.ModelProto):
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", options)

"""Small networks as a whole: bit-exact against NumPy, FP32, INT8 and imported QDQ models against ONNX Runtime."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import tvm

from tests.frontend.running import run_onnx
from tests.small_networks import NETWORKS, draw, with_islands
from tvm_int8 import api, pipeline
from tvm_int8.build import lower_and_build
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantized_model import QuantizedModel
from tvm_int8.reference.network import run_network
from tvm_int8.runtime import CompiledModule

CALIBRATION = 16
MIN_SQNR_DB = 25


@dataclass
class Quantised:
    """A network, the module compiled from it, and the kernel orders of the very graph that was built."""

    model: onnx.ModelProto
    module: CompiledModule
    float: tvm.IRModule
    ordered: tvm.IRModule


def compile_and_keep(model: onnx.ModelProto, quantized: QuantizedModel | None = None, **options) -> Quantised:
    """Compile the model, or what has been quantised of it."""
    graphs = []

    def build(mod, target, cpu, choose, tiles):
        ordered = pipeline.order()(mod)
        graphs.append(ordered if tiles is None else tiles(ordered))
        return lower_and_build(mod, target, cpu, choose, tiles)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "lower_and_build", build)
        module = api.compile(quantized or model, **options)
    (graph,) = graphs
    return Quantised(model, module, pipeline.canonical_float()(load_model(model)), graph)


@functools.cache
def quantized_small(name: str) -> tuple[onnx.ModelProto, QuantizedModel]:
    """A network, calibrated once for all targets."""
    model = NETWORKS[name]()
    return model, api.quantize(model, draw(model, CALIBRATION, seed=0), progress=False)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> Quantised:
    return compile_and_keep(*quantized_small(request.param))


def test_int8_is_bit_exact(network):
    for inputs in draw(network.model, 2, seed=1):
        expected = run_network(network.ordered, *inputs.values())
        for found, wanted in zip(network.module(*inputs.values()), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_int8_is_bit_exact_outside_of_the_calibrated_range(network):
    """Saturation everywhere: inputs of both signs, far too large."""
    (inputs,) = draw(network.model, 1, seed=2)
    inputs = {name: value * 20 for name, value in inputs.items()}
    expected = run_network(network.ordered, *inputs.values())
    for found, wanted in zip(network.module(*inputs.values()), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


FEATURES = {
    "cascadelake": ("avx512vnni",),
    "skylake-avx512": ("avx512bw",),
    "haswell": ("avx2",),
    "sapphirerapids": ("amx_int8", "avx512_bf16"),
    "alderlake": ("avx_vnni", "gfni", "serialize"),
    "znver4": ("avx512_bf16", "sse4a"),
}
"""Target -> what tells CPUs that can run it from the others."""
OTHERS = [
    pytest.param(name, target, marks=pytest.mark.isa(*features))
    for target, features in FEATURES.items()
    for name in (NETWORKS if target == "cascadelake" else ("mobile", "decoder", "inception"))
]


@pytest.mark.parametrize(("name", "target"), OTHERS)
def test_other_targets_are_bit_exact(name, target):
    model, quantized = quantized_small(name)
    network = compile_and_keep(model, quantized, target=target)
    (inputs,) = draw(model, 1, seed=1)
    expected = run_network(network.ordered, *inputs.values())
    for found, wanted in zip(network.module(*inputs.values()), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_int8_is_close_to_onnxruntime(network):
    batches = draw(network.model, 4, seed=3)
    reference = [run_onnx(network.model, inputs) for inputs in batches]
    found = [network.module(*inputs.values()) for inputs in batches]
    for expected, actual in zip(zip(*reference, strict=True), zip(*found, strict=True), strict=True):
        assert sqnr_db(np.stack(expected), np.stack(actual)) > MIN_SQNR_DB


def test_every_layer_is_int8(network):
    rows = network.module.report
    assert network.module.report.summary.startswith(f"{(n := layers(network.float))}/{n} "), network.module.report
    assert not [row for row in rows if row.origin.startswith("island")], network.module.report


def layers(mod) -> int:
    return sum(op_name(b.value) in ("nn.conv2d", "nn.conv2d_transpose") for b in Dataflow(mod).bindings)


def test_fp32_matches_onnxruntime(network):
    module = api.compile(network.model, quantization=None)
    (inputs,) = draw(network.model, 1, seed=1)
    for expected, actual in zip(run_onnx(network.model, inputs), module(*inputs.values()), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert not [row for row in module.report if row.precision == "int8" or row.origin.startswith("island")]


def test_islands_between_integers():
    model = with_islands()
    module = api.compile(model, calibration=draw(model, CALIBRATION, seed=0), progress=False)
    (inputs,) = draw(model, 1, seed=1)
    (expected,), (actual,) = run_onnx(model, inputs), module(*inputs.values())
    assert sqnr_db(expected, actual) > MIN_SQNR_DB
    assert module.report.summary.startswith("3/3 ")
    assert any("softmax" in row.layer or "softmax" in row.kernel for row in module.report)


# Quantised models of others


class Reader:
    """Feeds calibration data to ONNX Runtime's quantizer."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def quantize_by_onnxruntime(model, path, activations: str, per_channel: bool) -> onnx.ModelProto:
    from onnxruntime import quantization

    class Batches(Reader, quantization.CalibrationDataReader):
        pass

    dtype = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}[activations]
    quantization.quantize_static(
        model, path, Batches(draw(model, CALIBRATION, seed=0)), quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel, activation_type=dtype, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(path)


def output_scales(model: onnx.ModelProto) -> list[float | None]:
    """The scale of the DequantizeLinear that delivers each output; None where a float operator does."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    found = [producer[output.name] for output in model.graph.output]
    return [float(weights[node.input[1]]) if node.op_type == "DequantizeLinear" else None for node in found]


QDQ = [(name, "uint8", True) for name in ("residual", "mobile", "activations", "dense")]
QDQ += [(name, "int8", True) for name in ("inception", "decoder", "shuffle")]
QDQ += [("residual", "int8", False)]


@pytest.mark.filterwarnings("ignore")  # the quantizer's own
@pytest.mark.parametrize(("name", "activations", "per_channel"), QDQ)
def test_qdq_models_compute_what_onnxruntime_computes(name, activations, per_channel, tmp_path):
    model = quantize_by_onnxruntime(NETWORKS[name](), tmp_path / "qdq.onnx", activations, per_channel)
    module = api.compile(model)
    (inputs,) = draw(model, 1, seed=1)
    expected, actual = run_onnx(model, inputs), module(*inputs.values())
    for wanted, found, scale in zip(expected, actual, output_scales(model), strict=True):
        step = scale if scale is not None else np.abs(wanted).max() / 255
        difference = np.abs(found - wanted)
        assert (difference <= 1.01 * step).mean() > 0.99
        assert (difference <= 0.01 * step).mean() > 0.9
        assert len(np.unique(wanted)) > 4
    summary = module.report.summary
    count, _, total = summary.split(" ")[0].partition("/")
    assert count == total, module.report

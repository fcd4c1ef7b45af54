"""Models quantised by others, in the forms their quantisers write: all on integers, computing what ONNX Runtime does.

Small networks run through the kernels' statement in NumPy; trained ones are compiled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx.reference import ReferenceEvaluator

import tvm_int8
from benchmarks import metrics
from tests.frontend.running import SATURATES, graph, node, run_onnx
from tests.networks.layer_by_layer import layer_differences
from tests.small_networks import NETWORKS, draw
from tvm_int8 import pipeline
from tvm_int8.frontend import load_model
from tvm_int8.kernel_op import is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.float_reasons import float_reasons
from tvm_int8.specs import Conv2d, Spec

quantization = pytest.importorskip("onnxruntime.quantization")
pytestmark = pytest.mark.filterwarnings("ignore")  # the quantisers' own

MULTIPLYING = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
CONVERTS = "turns floats into integers"


def reader(batches):
    remaining = iter(batches)
    methods = {"get_next": lambda self: next(remaining, None)}
    return type("Reader", (quantization.CalibrationDataReader,), methods)()


def quantize_static(model, batches, activation="QUInt8", weight="QInt8", style="QDQ", prepare=False, **options):
    """`onnxruntime.quantization.quantize_static`; what is no parameter of it goes into its `extra_options`."""
    known = {name: options.pop(name) for name in ("reduce_range", "op_types_to_quantize") if name in options}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        if prepare:
            quantization.shape_inference.quant_pre_process(source, source, skip_symbolic_shape=True)
        quantization.quantize_static(
            source, target, reader(batches), quant_format=getattr(quantization.QuantFormat, style),
            per_channel=options.pop("per_channel", True), extra_options=options, **known,
            activation_type=getattr(quantization.QuantType, activation),
            weight_type=getattr(quantization.QuantType, weight),
        )  # fmt: skip
        return onnx.load(target)


def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    return onnx.version_converter.convert_version(model, opset)


def specs_of(ordered: tvm.IRModule) -> list[Spec]:
    return [spec_of(binding.value) for binding in Dataflow(ordered).bindings if is_kernel(binding.value)]


def convolutions(ordered: tvm.IRModule) -> list[Spec]:
    return [spec for spec in specs_of(ordered) if isinstance(spec, Conv2d)]


def check(model: onnx.ModelProto, inputs, float_layers: dict[str, str] | None = None) -> tvm.IRModule:
    """The ordered module, compared kernel by kernel; `float_layers` are those it may have, and why."""
    quantized = pipeline.integers()(pipeline.canonical_float()(load_model(model)))
    ordered = pipeline.order()(quantized)
    differences = layer_differences(model, ordered, inputs)
    assert len(differences) >= sum(made.op_type in MULTIPLYING for made in model.graph.node) - 2
    for layer, difference in differences.items():
        assert difference.max() <= 1, layer
        assert (difference > 0).mean() <= 0.05, layer  # means of four have many ties
    reasons = {layer: reason for layer, reason in float_reasons(quantized).items() if reason != CONVERTS}
    assert reasons == (float_layers or {})
    floats = {spec.layer for spec in convolutions(ordered) if spec.inputs[0].dtype == "float32"}
    assert floats == set(float_layers or {})
    return ordered


def small(name: str):
    model = NETWORKS[name]()
    (inputs,) = draw(model, 1, seed=1)
    return model, draw(model, 8, seed=0), inputs


ASYMMETRIC, NARROW = dict(weight="QUInt8", per_channel=False), dict(reduce_range=True)
OPERATORS = dict(style="QOperator", reduce_range=SATURATES)  # computed by ONNX Runtime as they are
SIGNED = dict(activation="QInt8")
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "qdq": ("inception", {}),
    "per tensor": ("mobile", dict(per_channel=False)),
    "int8": ("decoder", SIGNED),
    "symmetric": ("residual", {**SIGNED, "ActivationSymmetric": True}),
    "symmetric uint8": ("shuffle", {"ActivationSymmetric": True}),
    "asymmetric weights": ("mobile", ASYMMETRIC),
    "asymmetric weights per channel": ("activations", {"weight": "QUInt8", "WeightSymmetric": False}),
    "asymmetric weights, seven bits": ("dense", {**ASYMMETRIC, **NARROW}),
    "seven bits": ("residual", NARROW),
    "float biases": ("residual", {"QuantizeBias": False}),
    "prepared": ("residual", dict(prepare=True)),
    "pairs for each reader": ("mobile", {"DedicatedQDQPair": True}),
    "weights as floats": ("shuffle", {"AddQDQPairToWeight": True}),
    "ReLUs kept": ("mobile", {"QDQKeepRemovableActivations": True}),
    "own domain": ("inception", {"UseQDQContribOps": True}),
    "operators": ("residual", OPERATORS),
    "operators, int8": ("shuffle", {**OPERATORS, **SIGNED}),
    "operators, int8, prepared": ("inception", {**OPERATORS, **SIGNED, "prepare": True}),
    "operators, asymmetric weights": ("dense", {**OPERATORS, **ASYMMETRIC}),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_models_of_onnxruntime(configuration):
    name, options = CONFIGURATIONS[configuration]
    model, batches, inputs = small(name)
    check(quantize_static(model, batches, **options), inputs)


@pytest.mark.parametrize("opset", [18, 19, 21])
def test_operator_sets(opset):
    model, batches, inputs = small("inception")
    check(quantize_static(converted(model, opset), batches), inputs)


@pytest.mark.parametrize("style", ["QDQ", "QOperator"])
def test_only_the_convolutions(style):
    model, batches, inputs = small("residual")
    options = OPERATORS if style == "QOperator" else {}
    quantized = quantize_static(model, batches, **options, op_types_to_quantize=["Conv"])
    ordered = check(quantized, inputs, {"/gemm22": "its weight is not quantised"})
    if style == "QDQ":  # data are quantised only in front of convolutions, and move as bytes all the same
        (pool,) = [spec for spec in specs_of(ordered) if spec.layer == "/maxpool3"]
        assert (pool.inputs[0].dtype, pool.result.dtype) == ("uint8", "uint8")


@pytest.mark.parametrize(("activation", "dtype"), [("QUInt16", "uint16"), ("QInt16", "int16")])
def test_16_bits_run_in_fp32_and_say_so(activation, dtype):
    model, batches, _ = small("inception")
    quantized = quantize_static(model, batches, activation=activation)
    imported = pipeline.canonical_float()(load_model(quantized))
    reasons = float_reasons(imported)
    layers = [made.name for made in model.graph.node if made.op_type in MULTIPLYING]
    assert {reasons[layer] for layer in layers} == {f"its data are {dtype}, and kernels take 8 bits"}
    assert not [spec for spec in convolutions(pipeline.order()(imported)) if spec.inputs[0].dtype == "uint8"]


def test_products_of_integers_alone_are_quantised():
    """ConvInteger rounds no data; calibration would look for ranges that are there already."""
    rng = np.random.default_rng(0)
    weights = {
        "zero": np.uint8(120), "w": rng.integers(-128, 128, (20, 3, 3, 3)).astype(np.int8), "scale": np.float32(0.001),
    }  # fmt: skip
    nodes = [
        node("ConvInteger", "x w zero", "i", "conv"), node("Cast", "i", "f", "cast", to=1),
        node("Mul", "f scale", "y", "scaled"),
    ]  # fmt: skip
    x = rng.integers(0, 256, (1, 3, 7, 7)).astype(np.uint8)
    model = graph(nodes, {"x": x}, weights)
    module = tvm_int8.compile(model, num_threads=1)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(module(x)[0], expected, rtol=1e-6)
    assert module.report.summary.startswith("1/1 "), module.report


NNCF = [("residual", "performance"), ("inception", "mixed"), ("decoder", "performance"), ("activations", "mixed")]


@pytest.mark.slow  # importing NNCF
@pytest.mark.parametrize(("name", "preset"), NNCF)
def test_models_of_nncf(name, preset):
    nncf = pytest.importorskip("nncf", reason="NNCF is not installed")
    model, batches, inputs = small(name)
    options = dict(preset=nncf.QuantizationPreset(preset), subset_size=len(batches))
    check(nncf.quantize(model, nncf.Dataset(batches), **options), inputs)


# Trained networks

TRAINED = {
    "QDQ": {},
    "int8 operators": {**OPERATORS, **SIGNED, "prepare": True},
    "asymmetric weights": ASYMMETRIC,
}


@pytest.mark.slow
@pytest.mark.parametrize("configuration", TRAINED)
def test_trained_networks_decide_like_onnxruntime(configuration, real_models):
    name = "resnet8_cifar10"
    model = onnx.load(str(real_models.model_path(name)))
    images = real_models.calibration_batches(name, 80)
    feed = model.graph.input[0].name
    quantized = quantize_static(model, [{feed: image} for image in images[:16]], **TRAINED[configuration])
    module = tvm_int8.compile(quantized, num_threads=1)
    expected = [run_onnx(quantized, {feed: image})[0] for image in images[16:]]
    actual = [np.array(module(image)[0]) for image in images[16:]]
    assert metrics.equal_decisions(expected, actual) == 1.0
    assert np.mean(np.abs(np.stack(expected) - np.stack(actual)) < 1e-6) > 0.5
    count, _, total = module.report.summary.split(" ")[0].partition("/")
    assert count == total == "10", module.report

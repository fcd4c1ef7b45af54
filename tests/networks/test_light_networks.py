"""Networks of ONNX's light model set, whole: INT8 at least as exact as ONNX Runtime's, FP32 like its FP32.

Three of the nine are not compiled: ResNet-50 and VGG are networks of the zoo, and ZFNet has the layers of AlexNet.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from benchmarks import metrics, peers
from benchmarks.compare import FP32_TOLERANCE
from benchmarks.light_models import light_inputs, light_model
from benchmarks.onnx_graph import logits_model

pytest.importorskip("onnxruntime")

import tvm_int8

QUICK = ("squeezenet", "shufflenet")
FP32 = ("alexnet", "inception_v1", "squeezenet", "shufflenet")
"""What the zoo has in FP32 in another form is compiled in INT8 alone; these have LRN, or grouped pointwise layers."""
NAMES = (*FP32, "densenet121", "inception_v2")  # so that both tests of a network are neighbours
CALIBRATION, CHECKS = 16, 8
MAC_OPERATORS = ("conv", "dense", "matmul", "gemm")
CONCATENATIONS = {"squeezenet": 0, "inception_v1": 0, "inception_v2": 0, "densenet121": 4}
"""Kernels that may still copy channels: in DenseNet, where one concatenation is much coarser than the one inside it."""


@dataclass
class Light:
    """One network and its inputs."""

    name: str
    model: onnx.ModelProto
    calibration: list[np.ndarray]
    inputs: list[np.ndarray]


def marked(names) -> list:
    """Parameters: the names, those not quick marked slow."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def light(request):
    """Draw the weights once for both tests of a network, and let go of them (up to 570 MB) after."""
    name = request.param
    yield Light(name, light_model(name), light_inputs(name, CALIBRATION, 0), light_inputs(name, CHECKS, 1))
    gc.collect()


@pytest.mark.parametrize("light", marked(FP32), indirect=True)
def test_fp32_matches_onnxruntime(light: Light, run_all):
    """The graph as shipped, Softmax included."""
    reference = run_all(peers.ort_fp32(light.model, [], 1).infer, light.inputs[:2])
    actual = run_all(tvm_int8.compile(light.model, quantization=None), light.inputs[:2])
    assert metrics.relative_error(reference, actual) <= FP32_TOLERANCE


@pytest.mark.parametrize("light", marked(NAMES), indirect=True)
def test_int8_is_as_exact_as_onnxruntime(light: Light, run_all):
    """Same calibration inputs for both, noise measured at the logits; nothing that multiplies stays in FP32.

    Quantisers are compared: what tiles may lose on top is an option (test_winograd).
    """
    model = logits_model(light.model)
    reference = run_all(peers.ort_fp32(model, [], 1).infer, light.inputs)
    theirs = metrics.sqnr_db(reference, run_all(peers.ort_int8(model, light.calibration, 1).infer, light.inputs))
    module = tvm_int8.compile(model, calibration=light.calibration, quantization={"winograd": "off"})
    ours = metrics.sqnr_db(reference, run_all(module, light.inputs))
    assert ours >= theirs, f"{light.name}: SQNR {ours:.2f} dB, ONNX Runtime {theirs:.2f} dB"
    assert left_in_fp32(module) == []
    if light.name in CONCATENATIONS:
        copies = [row.layer for row in module.metadata.kernels if row.kernel == "channel_gather"]
        assert len(copies) <= CONCATENATIONS[light.name], copies


def left_in_fp32(module) -> list[str]:
    """Names of the convolution and dense layers the report does not call INT8."""
    rows = [row for row in module.report if any(word in row.op for word in MAC_OPERATORS)]
    assert rows, "the report lists no convolution or dense layer"
    return [row.layer for row in rows if row.precision.lower() != "int8"]

"""Trained and well known networks quantised here, run by ONNX Runtime and OpenVINO: they decide as our modules do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from benchmarks import metrics, peers
from benchmarks.light_models import light_inputs, light_model
from benchmarks.onnx_graph import logits_model
from tests.networks.test_real_networks import CLASSIFIERS
from tvm_int8.cli.quantize import RUNTIMES

pytest.importorskip("onnxruntime")

import tvm_int8

pytestmark = [pytest.mark.slow, pytest.mark.isa("avx512vnni")]

NETWORKS = [
    ("resnet8_cifar10", "onnxruntime"),
    ("resnet8_cifar10", "openvino"),
    ("mobilenetv1_025_vww", "openvino"),
    ("yolo_fastest_1.1", "onnxruntime"),
]
"""With all six of `test_real_networks`, each in both runtimes, and 500 images the figures are alike."""
CALIBRATION, IMAGES = 32, 128
MIN_EQUAL_DECISIONS = 0.995
MIN_SQNR_DB = {**dict.fromkeys(CLASSIFIERS, 35), "yolo_fastest_1.1": 25}
"""Where one program rounds x.5 up and the other down, all layers behind differ: the more, the more there are. Against
the float network both are equally good, at 15 to 33 dB."""
MAX_METRIC_DIFFERENCE = 0.01


RUN = {"onnxruntime": peers.ort_fp32, "openvino": peers.openvino_fp32}
"""What runs a model as it is: one with QuantizeLinear in INT8."""


def infer_of(model: onnx.ModelProto, runtime: str) -> Callable:
    runner = RUN[runtime](model, [], 2)
    if isinstance(runner, peers.Absent):
        pytest.skip(f"{runner.name}: {runner.reason}")
    return runner.infer


def scored(real_models, name: str, infer: Callable) -> tuple[float, list[np.ndarray]]:
    """(metric, first output of every image)."""
    first = []

    def recording(x: np.ndarray) -> list[np.ndarray]:
        outputs = [np.array(value) for value in infer(x)]
        first.append(outputs[0])
        return outputs

    return real_models.score(name, recording, IMAGES), first


@pytest.mark.parametrize(("name", "runtime"), NETWORKS)
def test_trained_networks_decide_the_same(name, runtime, real_models):
    calibration = real_models.calibration_batches(name, CALIBRATION)
    quantized = tvm_int8.quantize(real_models.model_path(name), calibration, RUNTIMES[runtime], progress=False)
    metric, ours = scored(real_models, name, tvm_int8.compile(quantized))
    their_metric, theirs = scored(real_models, name, infer_of(quantized.to_onnx(), runtime))
    sqnr, equal = metrics.sqnr_db(ours, theirs), metrics.equal_decisions(ours, theirs)
    print(f"{name}, {runtime}: {metric:.4f} here, {their_metric:.4f} there, {sqnr:.1f} dB, {equal:.2%} equal decisions")
    assert sqnr >= MIN_SQNR_DB[name]
    assert abs(metric - their_metric) <= MAX_METRIC_DIFFERENCE
    if name in CLASSIFIERS:
        assert equal >= MIN_EQUAL_DECISIONS


@pytest.mark.parametrize(("name", "runtime"), [("squeezenet", "openvino"), ("shufflenet", "onnxruntime")])
def test_light_networks_compute_the_same(name, runtime, run_all):
    """OpenVINO 2026.4 computes ShuffleNet's grouped convolutions wrongly in INT8, NNCF's model of it, too."""
    model, inputs = logits_model(light_model(name)), light_inputs(name, 8, 1)
    quantized = tvm_int8.quantize(model, light_inputs(name, 8, 0), RUNTIMES[runtime], progress=False)
    ours, theirs = run_all(tvm_int8.compile(quantized), inputs), run_all(infer_of(quantized.to_onnx(), runtime), inputs)
    sqnr = metrics.sqnr_db(ours, theirs)
    print(f"{name}, {runtime}: {sqnr:.1f} dB")
    assert sqnr >= 25
    assert np.isfinite(theirs).all()

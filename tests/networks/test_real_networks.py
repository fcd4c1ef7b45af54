"""Six trained networks on labelled data: what a user loses by going to INT8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from benchmarks import metrics, peers
from benchmarks.compare import FP32_TOLERANCE

pytest.importorskip("onnxruntime")

import tvm_int8

CLASSIFIERS = ("resnet8_cifar10", "resnet20_cifar10", "resnet32_cifar10", "mobilenetv1_025_vww")
OTHERS = ("yolo_fastest_1.1", "espnet_camvid")
CALIBRATION = 256
MAX_LOSS = {**dict.fromkeys(CLASSIFIERS, 0.01), **dict.fromkeys(OTHERS, 0.015)}
"""Of the metric. Detector and segmenter have only 48 and 16 images: six settings with 22 to 28 dB scattered over 0.7
points of the detector's, not in the order of their noise."""
MIN_SQNR_DB = 20
MIN_EQUAL_DECISIONS = 0.99


@dataclass
class Recorder:
    """An inference function that keeps its first outputs, which the metric's caller would not see otherwise."""

    infer: Callable
    first: list[np.ndarray] = field(default_factory=list)

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        outputs = [np.array(value) for value in self.infer(x)]
        self.first.append(outputs[0])
        return outputs


@pytest.fixture(scope="module")
def fp32(real_models):
    """Score a network with ONNX Runtime FP32: (metric, first output per test input)."""

    def score(name: str) -> tuple[float, list[np.ndarray]]:
        recorder = Recorder(peers.ort_fp32(onnx.load(str(real_models.model_path(name))), [], 2).infer)
        return real_models.score(name, recorder), recorder.first

    return score


@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
def test_fp32_matches_onnxruntime(name, real_models, run_all):
    path = real_models.model_path(name)
    inputs = real_models.calibration_batches(name, 2)
    reference = run_all(peers.ort_fp32(onnx.load(str(path)), [], 2).infer, inputs)
    actual = run_all(tvm_int8.compile(path, quantization=None), inputs)
    assert metrics.relative_error(reference, actual) <= FP32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
def test_int8_keeps_the_metric(name, real_models, fp32):
    """The loss is small, so is the noise, and a classifier decides like its FP32 original on 99 % of the images."""
    calibration = real_models.calibration_batches(name, CALIBRATION)
    int8 = Recorder(tvm_int8.compile(real_models.model_path(name), calibration=calibration))
    metric = real_models.score(name, int8)
    expected, reference = fp32(name)
    print(f"{name}: {metric:.4f} in INT8, {expected:.4f} in FP32")
    assert metric >= expected - MAX_LOSS[name], f"{name}: {metric:.4f} in INT8, {expected:.4f} in FP32"
    sqnr = metrics.sqnr_db(reference, int8.first)
    assert sqnr >= MIN_SQNR_DB, f"{name}: {sqnr:.1f} dB"
    if name in CLASSIFIERS:
        equal = metrics.equal_decisions(reference, int8.first)
        print(f"{name}: {equal:.2%} equal decisions")
        assert equal >= MIN_EQUAL_DECISIONS, f"{name}: INT8 decides like FP32 on {equal:.2%} of the images"

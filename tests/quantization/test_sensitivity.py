"""Which layer is to blame: each alone, all but each, and what it takes in FP32."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module
from tests.quantization.calibrated import Calibrated, calibrated, with_table
from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.output_noise import OutputNoise
from tvm_int8.quantization.sensitivity import LayerSensitivity, Sensitivity, excluding, restricted, times
from tvm_int8.quantization.simulated_network import SimulatedNetwork

op = relax.op

LAYERS = {"conv1": "stem", "conv2": "body[0].conv", "conv3": "conv2d", "conv4": "head"}
BAD = "body[0].conv"


def chain(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1), "conv1")), "relu1")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 8, 1, 1, seed=2)), "conv2")), "relu2")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 8, 3, 3, seed=3), padding=1), "conv3")), "relu3")
    return op.nn.conv2d(emit(op.nn.max_pool2d(y, (2, 2)), "pool"), const(5, 8, 1, 1, seed=4))


def batches(count=8, seed=0):
    return [{"x": f32(1, 3, 8, 8, seed=seed + i)} for i in range(count)]


@functools.cache
def network() -> Calibrated:
    """The tensor that `BAD` reads has a range that is far too wide."""
    mod = module(chain, {**LAYERS, "out": LAYERS["conv4"]}, x=(1, 3, 8, 8))
    good = calibrated(mod, batches(), per_channel_activations=False)
    ranges = {name: good.table[name] for name in good.table}
    wide = replace(ranges["relu1"], high=30 * ranges["relu1"].high)
    return with_table(good.mod, CalibrationTable({**ranges, "relu1": wide}), good.config)


@functools.cache
def sensitivity() -> Sensitivity:
    found = network()
    return Sensitivity(found.mod, found.config, found.quantizers, batches())


@functools.cache
def measured() -> dict[str, LayerSensitivity]:
    return {layer.layer: layer for layer in sensitivity().measure(progress=False)}


def test_layers_come_in_order_under_the_users_names():
    assert list(measured()) == sensitivity().layers == list(LAYERS.values())
    assert {layer.op for layer in measured().values()} == {"nn.conv2d"}


def test_the_bad_layer_is_to_blame():
    others = [layer for layer in measured().values() if layer.layer != BAD]
    bad = measured()[BAD]
    assert bad.alone > 20 * max(layer.alone for layer in others)
    assert bad.without < 0.1 * min(layer.without for layer in others)
    assert bad.alone_db < min(layer.alone_db for layer in others) - 10
    assert bad.without_db > max(layer.without_db for layer in others) + 10


def test_noises_add_up():
    """Those of layers alone, about: they are small, and know nothing of each other."""
    total = sum(layer.alone for layer in measured().values())
    assert sensitivity().noise([]) == pytest.approx(total, rel=0.3)


def test_the_noise_of_everything():
    found = network()
    noise = OutputNoise(SimulatedNetwork(found.mod, found.quantizers), batches())
    noise.network.apply(found.quantizers)
    assert sensitivity().noise([]) == noise.measure()
    assert sensitivity().sqnr_db() == pytest.approx(-10 * np.log10(noise.measure()))


def test_it_is_the_noise_of_the_integer_network():
    assert sensitivity().sqnr_db() == pytest.approx(network().integer_db(batches()), abs=0.5)


@pytest.mark.parametrize("floating", [["stem"], [BAD, "head"], ["conv2d"]])
def test_with_layers_in_fp32_too(floating):
    """What is measured is what a module quantised so delivers; a name is no kind of operator, nor a pattern."""
    found = network()
    config = excluding(found.config, floating)
    left = restricted(Dataflow(found.mod), config, found.quantizers)
    assert len(left.weights) == len(LAYERS) - len(floating)
    narrowed = replace(found, config=config, quantizers=left)
    assert sensitivity().sqnr_db(floating) == pytest.approx(narrowed.integer_db(batches()), abs=0.5)


def test_nothing_in_int8_makes_no_noise():
    assert sensitivity().noise(sensitivity().layers) == 0
    assert sensitivity().sqnr_db(sensitivity().layers) == np.inf


def test_layers_that_are_excluded_already_are_not_measured():
    found = network()
    config = replace(found.config, exclude=("stem",))
    left = restricted(Dataflow(found.mod), config, found.quantizers)
    narrowed = Sensitivity(found.mod, config, left, batches(2), sensitivity().network)
    assert narrowed.layers == [BAD, "conv2d", "head"]
    assert narrowed.noise(narrowed.layers) == 0


def test_restricted_to_nothing():
    found = network()
    left = restricted(Dataflow(found.mod), excluding(found.config, LAYERS.values()), found.quantizers)
    assert (left.activations, left.weights, left.pixels) == ({}, {}, {})


# Time


def unit(body, **inputs):
    (found,) = plan_quantization(Dataflow(module(body, **inputs)), QuantizationConfig()).units
    return found


def test_fp32_takes_longer():
    for layer in measured().values():
        assert 0 < layer.int8_time < layer.float_time
        assert layer.cost == layer.float_time - layer.int8_time


def test_time_of_a_convolution():
    found = unit(lambda emit, x: op.nn.conv2d(x, const(6, 2, 3, 3), strides=2, padding=1, groups=2), x=(2, 4, 8, 8))
    macs, moved = 2 * 4 * 4 * 6 * 2 * 9, 2 * (2 * 4 * 64 + 2 * 6 * 16 + 6 * 2 * 9)
    assert times(found) == (macs / 4 + moved, macs + 4 * moved)


def test_time_of_a_transposed_convolution():
    """Every pixel of its data meets every weight once."""
    found = unit(lambda emit, x: op.nn.conv2d_transpose(x, const(4, 6, 2, 2), strides=2), x=(1, 4, 5, 5))
    macs, moved = 25 * 4 * 6 * 4, 2 * (4 * 25 + 6 * 100 + 4 * 6 * 4)
    assert times(found) == (macs / 4 + moved, macs + 4 * moved)


def test_large_layers_take_longer():
    found = measured()
    assert found["conv2d"].cost > found[BAD].cost > found["head"].cost

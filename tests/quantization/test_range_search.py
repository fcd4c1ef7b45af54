"""Ranges by the noise in the outputs: never noisier than the calibrated ones, and better where these are bad."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, module
from tests.quantization.calibrated import Calibrated, calibrated, with_table
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.output_noise import OutputNoise
from tvm_int8.quantization.range_search import search_ranges
from tvm_int8.quantization.simulated_network import SimulatedNetwork

op = relax.op


def body(emit, x):
    """A depthwise convolution, a pool that keeps its scale, and a concatenation whose parts take its scale."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(8, 3, 3, 3), padding=1), "conv1")), "relu1")
    y = emit(op.nn.relu(emit(op.nn.conv2d(y, const(8, 1, 3, 3, seed=2), padding=1, groups=8), "conv2")), "relu2")
    pool = emit(op.nn.max_pool2d(y, (2, 2), strides=(2, 2)), "pool")
    left = emit(op.nn.relu(emit(op.nn.conv2d(pool, const(4, 8, 1, 1, seed=3)), "conv3")), "left")
    right = emit(op.nn.relu(emit(op.nn.conv2d(pool, const(4, 8, 3, 3, seed=4), padding=1), "conv4")), "right")
    y = emit(op.concat([left, right], axis=1), "both")
    return op.nn.conv2d(y, const(5, 8, 1, 1, seed=5))


def batches(count=4):
    values = np.random.default_rng(0).standard_normal((count, 1, 3, 8, 8)) * np.array([1, 0.2, 4]).reshape(3, 1, 1)
    return [{"x": value.astype(np.float32)} for value in values]


@functools.cache
def network() -> Calibrated:
    return calibrated(module(body, x=(1, 3, 8, 8)), batches())


@functools.cache
def simulated() -> SimulatedNetwork:
    return SimulatedNetwork(network().mod, network().quantizers)


def changed(**ends) -> Calibrated:
    """Ranges multiplied, histograms as they were."""
    return _changed(tuple(ends.items()))


@functools.cache
def _changed(ends) -> Calibrated:
    ranges = {name: network().table[name] for name in network().table}
    for name, factor in ends:
        ranges[name] = replace(ranges[name], low=factor * ranges[name].low, high=factor * ranges[name].high)
    return with_table(network().mod, CalibrationTable(ranges), network().config)


def search(case):
    return search_ranges(case.mod, case.choice, simulated(), batches(), progress=False)


@functools.cache
def _found(ends):
    return search(_changed(ends))


def found(**ends):
    """What the search chooses where ranges are changed so."""
    return _found(tuple(ends.items()))


def noise(quantizers):
    measure = OutputNoise(simulated(), batches())
    simulated().apply(quantizers)
    return measure.measure()


def test_the_network_has_what_the_search_must_respect():
    plan, activations = network().choice.plan, network().quantizers.activations
    sources = {var.name: plan.origin(var).name for var in plan.source}
    assert sources == {"pool": "relu2", "left": "both", "right": "both"}
    assert any(quantizer.per_channel for quantizer in activations.values())


CHANGES = [{}, {"x": 0.2}, {"relu1": 0.1, "both": 0.1}, {"relu2": 20}, {"x": 5, "relu2": 0.05, "both": 3}]


@pytest.mark.parametrize("ends", CHANGES)
def test_never_noisier_than_the_calibrated_ranges(ends):
    assert noise(found(**ends)) <= noise(changed(**ends).quantizers)


@pytest.mark.parametrize(("name", "factor"), [("x", 0.2), ("relu2", 20), ("relu2", 0.1), ("both", 0.1)])
def test_a_bad_range_is_given_up(name, factor):
    """All that was seen is known to do better."""
    case, chosen = changed(**{name: factor}), found(**{name: factor})
    assert noise(chosen) < 0.1 * noise(case.quantizers)
    assert noise(chosen) < 1.5 * noise(network().quantizers)
    (var,) = [var for var in case.choice.plan.quantized if var.name == name]
    bad, quantizer = case.choice.tensor(var), chosen.activations[name]
    assert quantizer.per_channel or quantizer.scale != bad.scale


@pytest.mark.parametrize("ends", CHANGES[2:])
def test_tensors_with_anothers_scale_follow_it(ends):
    chosen = found(**ends).activations
    for name, origin in {"pool": "relu2", "left": "both", "right": "both"}.items():
        if not chosen[origin].per_channel:
            assert chosen[name].scale == chosen[origin].scale
            assert chosen[name].zero_point == chosen[origin].zero_point


def test_weights_follow_the_factors_that_were_chosen():
    case, chosen = changed(x=0.2), found(x=0.2)
    for binding in case.choice.flow.bindings:
        if binding.var.name in chosen.weights:
            expected = case.choice.weight(binding, chosen)
            np.testing.assert_array_equal(chosen.weights[binding.var.name].values, expected.values)
            np.testing.assert_array_equal(chosen.weights[binding.var.name].scale, expected.scale)


def test_what_is_found_is_what_integers_compute():
    case, chosen = changed(relu2=0.1), found(relu2=0.1)
    assert case.integer_db(batches(), chosen) == pytest.approx(-10 * np.log10(noise(chosen)), abs=1)
    assert case.integer_db(batches(), chosen) > case.integer_db(batches()) + 5


def test_the_network_is_left_rounding_nothing():
    search(changed(relu2=0.1))
    after = [simulated()(batch)["y"] for batch in batches()]
    simulated().apply(None)
    for batch, values in zip(batches(), after, strict=True):
        np.testing.assert_array_equal(simulated()(batch)["y"], values)


def test_ranges_without_histograms():
    """What was seen is not known then; there is still a choice between scales of tensors and of channels."""
    case = changed(relu2=20)
    bare = {name: replace(case.table[name], histogram=None) for name in case.table}
    case = with_table(case.mod, CalibrationTable(bare), case.config)
    chosen = search(case)
    assert noise(chosen) <= noise(case.quantizers)
    assert chosen.activations.keys() == case.quantizers.activations.keys()


def test_ranges_alone():
    """Neither histograms nor channels: nothing to choose from."""
    bare = {name: replace(network().table[name], histogram=None, channels=None) for name in network().table}
    case = with_table(network().mod, CalibrationTable(bare), network().config)
    chosen = search(case)
    for name, quantizer in case.quantizers.activations.items():
        assert (chosen.activations[name].scale, chosen.activations[name].per_channel) == (quantizer.scale, False)


def test_it_is_reproducible():
    first, second = found(both=0.1).activations, search(changed(both=0.1)).activations
    for name, quantizer in first.items():
        np.testing.assert_array_equal(second[name].scale, quantizer.scale)
        np.testing.assert_array_equal(second[name].zero_point, quantizer.zero_point)

"""Layers left in FP32: enough for the accuracy wanted, no more than needed, within the time allowed."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.quantization.test_sensitivity import BAD, LAYERS, batches, network, sensitivity
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.quantization.mixed_precision import by_worth, fewest, layers_for_slowdown, layers_for_sqnr
from tvm_int8.quantization.output_noise import decibels
from tvm_int8.quantization.sensitivity import LayerSensitivity, excluding, restricted


class Additive:
    """A network whose layers make noise of their own, and something in common where neighbours meet in INT8."""

    def __init__(self, seed, count=7, common=0.0):
        rng = np.random.default_rng(seed)
        self.own = dict(zip("abcdefghij"[:count], 10 ** rng.uniform(-5, -2, count), strict=False))
        self.cost = dict(zip(self.own, 10 ** rng.uniform(2, 5, count), strict=True))
        self.common, self.floor, self.asked = common, 0.0, 0

    def noise(self, floating):
        self.asked += 1
        left = [layer for layer in self.own if layer not in floating]
        together = sum(a in left and b in left for a, b in itertools.pairwise(self.own))
        return self.floor + sum(self.own[layer] for layer in left) + self.common * together

    def measure(self, progress=True):
        every = list(self.own)
        return [
            LayerSensitivity(k, "nn.conv2d", self.noise([o for o in every if o != k]), self.noise([k]), c, 4 * c)
            for k, c in self.cost.items()
        ]

    def time(self, floating):
        return sum(3 * self.cost[layer] for layer in floating)

    def subsets(self):
        return [s for size in range(len(self.own) + 1) for s in itertools.combinations(self.own, size)]


# Bisection


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 31])
def test_fewest_against_all(most):
    for first in range(most + 3):
        asked = []

        def good(count, first=first, asked=asked):
            asked.append(count)
            return count >= first

        assert fewest(good, most) == min(first, most)
        assert len(asked) <= most.bit_length()
        assert most not in asked


# For an SQNR


@pytest.mark.parametrize("common", [0.0, 1e-4])
@pytest.mark.parametrize("seed", range(15))
def test_what_is_wanted_is_reached_and_nothing_is_left_over(seed, common):
    """Against all subsets: no layer is in vain, and the time is not far from the least there is."""
    network = Additive(seed, common=common)
    everything, allowed = network.noise([]), 10 ** np.random.default_rng(seed).uniform(-5, -2)
    layers, reached_db = layers_for_sqnr(network, decibels(allowed), progress=False)
    allowed *= 1 + 1e-9
    assert reached_db == decibels(network.noise(layers))
    assert network.noise(layers) <= allowed
    if everything <= allowed:
        assert layers == []
    for layer in layers:
        assert network.noise([other for other in layers if other != layer]) > allowed / (1 + 1e-8)
    least = min(network.time(s) for s in network.subsets() if network.noise(s) <= allowed)
    assert network.time(layers) <= 2 * least + 1e-9 or len(layers) <= 2


@pytest.mark.parametrize("seed", range(15))
def test_never_more_layers_than_the_first_by_worth(seed):
    network = Additive(seed, common=1e-4)
    allowed = 10 ** np.random.default_rng(seed).uniform(-4, -2)
    ranked = [layer.layer for layer in by_worth(network.measure())]
    prefix = next(k for k in range(len(ranked) + 1) if network.noise(ranked[:k]) <= allowed)
    layers, _ = layers_for_sqnr(network, decibels(allowed * (1 + 1e-9)), progress=False)
    assert set(layers) <= set(ranked[:prefix])


def test_enough_already_asks_for_no_measurement():
    network = Additive(0)
    assert layers_for_sqnr(network, 10.0, progress=False)[0] == []
    assert network.asked == 1


def test_what_cannot_be_reached_leaves_all_in_fp32():
    network = Additive(0)
    layers, reached_db = layers_for_sqnr(network, 1000.0, progress=False)
    assert sorted(layers) == list(network.own)
    assert reached_db == math.inf


def test_worth_is_noise_per_time():
    ranked = by_worth(
        [LayerSensitivity(n, "nn.conv2d", a, 0, 0, c) for n, a, c in [("a", 1, 4), ("b", 3, 4), ("c", 3, 1)]]
    )
    assert [layer.layer for layer in ranked] == ["c", "b", "a"]


# For a loss of time


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_time_allowed_is_kept(seed, share):
    network = Additive(seed)
    layers, reached_db = layers_for_slowdown(network, share, progress=False)
    total = sum(network.cost.values())
    assert network.time(layers) <= share * total * (1 + 1e-9)
    assert reached_db == decibels(network.noise(layers))
    left = share * total - network.time(layers)
    assert all(3 * network.cost[layer] > left for layer in network.own if layer not in layers)


def test_all_the_time_in_the_world():
    network = Additive(1)
    layers, reached_db = layers_for_slowdown(network, 3.001, progress=False)
    assert sorted(layers) == list(network.own)
    assert reached_db == math.inf


def test_layers_that_do_not_help_stay():
    """One that makes the noise of another one smaller, for instance."""
    network = Additive(1)
    network.own["b"], network.floor = -1e-9, 1e-6
    layers, _ = layers_for_slowdown(network, 5.0, progress=False)
    assert sorted(layers) == [layer for layer in network.own if layer != "b"]


# A real network


def integer_db(layers):
    """SQNR of the integer network with these layers in FP32."""
    config = excluding(network().config, layers)
    left = restricted(Dataflow(network().mod), config, network().quantizers)
    return replace(network(), config=config, quantizers=left).integer_db(batches())


@pytest.mark.parametrize(("gain_db", "most"), [(-1.0, 0), (5.0, 1), (16.0, 1), (28.0, 3)])
def test_a_network_with_one_bad_layer(gain_db, most):
    wanted = sensitivity().sqnr_db() + gain_db
    layers, reached = layers_for_sqnr(sensitivity(), wanted, progress=False)
    assert reached >= wanted
    assert len(layers) <= most
    assert (BAD in layers) == (most > 0)
    assert reached == pytest.approx(integer_db(layers), abs=0.7)


def test_a_network_for_a_loss_of_time():
    times = {layer.layer: layer for layer in sensitivity().measure(progress=False)}
    total = sum(layer.int8_time for layer in times.values())
    layers, reached = layers_for_slowdown(sensitivity(), 1.01 * times[BAD].cost / total, progress=False)
    assert layers == [BAD]
    assert reached > sensitivity().sqnr_db() + 10


def test_an_impossible_target():
    layers, reached = layers_for_sqnr(sensitivity(), 500.0, progress=False)
    assert sorted(layers) == sorted(LAYERS.values())
    assert reached == math.inf

"""Which layers are proposed for FP32, and in which order."""

from __future__ import annotations

import math

import pytest

from tvm_int8.analysis.suggestions import MOST_TRIED, suggest
from tvm_int8.analysis.times import Times, estimated_times
from tvm_int8.quantization.sensitivity import LayerSensitivity


class Noisy:
    """A network whose layers' noise adds up."""

    def __init__(self, noise: dict[str, float]):
        self.noise = noise

    def sqnr_db(self, floating=()) -> float:
        left = sum(power for layer, power in self.noise.items() if layer not in floating)
        return -10 * math.log10(left) if left else math.inf


def sensitivity(layer: str, alone: float, int8_time: float, float_time: float) -> LayerSensitivity:
    return LayerSensitivity(layer, "nn.conv2d", alone, 0.0, int8_time, float_time)


def times(*layers: LayerSensitivity, int8: float = 100.0) -> Times:
    return Times("us", layers, int8, 400.0, "made up", resolution=0.5)


def test_noise_for_time_decides():
    layers = [sensitivity("dear", 4e-3, 10, 50), sensitivity("cheap", 2e-3, 10, 14), sensitivity("quiet", 1e-9, 1, 2)]
    noise = {layer.layer: layer.alone for layer in layers} | {"rest": 1e-3}
    first, second = suggest(Noisy(noise), times(*layers), ["given"], progress=False)
    assert (first.layer, second.layer) == ("cheap", "dear")
    assert first.gain_db == pytest.approx(10 * math.log10(7 / 5), abs=1e-4)
    assert second.sqnr_db == pytest.approx(30, abs=1e-4)
    assert (first.cost, first.cost_share, second.total_share) == (4, 0.04, 0.44)
    assert second.float_layers == ("given", "cheap", "dear")


def test_layers_that_are_no_slower_in_fp32_cost_what_can_be_measured():
    layers = [sensitivity("loud", 4e-3, 10, 10.4), sensitivity("faster", 1e-3, 10, 8)]
    found = suggest(Noisy({layer.layer: layer.alone for layer in layers}), times(*layers), [], progress=False)
    assert [(each.layer, each.cost) for each in found] == [("loud", 0.5), ("faster", 0.5)]
    assert found[1].sqnr_db == math.inf


def test_few_are_tried():
    layers = [sensitivity(f"conv{i}", 1e-3, 1, 2) for i in range(3 * MOST_TRIED)]
    found = suggest(Noisy({layer.layer: layer.alone for layer in layers}), times(*layers), [], progress=False)
    assert len(found) == MOST_TRIED


def test_estimates_are_relative():
    found = estimated_times([sensitivity("a", 1e-3, 30, 120), sensitivity("b", 1e-3, 10, 40)])
    assert (found.unit, found.int8, found.floating) == ("%", 100, 400)
    assert [(layer.int8_time, layer.float_time) for layer in found.layers] == [(75, 300), (25, 100)]

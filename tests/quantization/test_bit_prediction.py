"""Choices of widths foretold: noises that add up, and what layers do together."""

from __future__ import annotations

import math

import pytest

from tvm_int8.quantization.bit_prediction import BitPrediction
from tvm_int8.quantization.layer_noise import NoiseByBits
from tvm_int8.quantization.output_noise import decibels


class Allocator:
    """Of a network whose layers make `factor` times the noise together; what it was asked to round is in `asked`."""

    def __init__(self, noises, base, factor):
        self.noises, self.base, self.factor, self.asked = noises, base, factor, []

    def reached(self, weights):
        assert weights is None
        return self.base

    def delivered(self, widths):
        self.asked.append(widths)
        return self.factor * (self.base + sum(n.output[b] for n, b in zip(self.noises, widths, strict=True)))


def noises(widths=range(1, 9)):
    made = [{b: scale * 4.0**-b for b in widths} for scale in (1.0, 0.1, 0.02)]
    return [NoiseByBits(f"layer{i}", 10, own, own) for i, own in enumerate(made)]


def test_small_widths_have_what_layers_do_together():
    layers = noises()
    allocator = Allocator(layers, 1e-6, 0.5)
    predict = BitPrediction(allocator, layers)
    for widths in ([2, 2, 2], [4, 4, 4], [5, 3, 2]):
        exact = 0.5 * (1e-6 + sum(n.output[b] for n, b in zip(layers, widths, strict=True)))
        assert predict(1e-6, layers, widths) == pytest.approx(decibels(exact))
    assert allocator.asked == [[3, 3, 3], [5, 5, 5]], "measured once, with the same bits everywhere"


def test_large_widths_add_up():
    layers = noises()
    allocator = Allocator(layers, 0.0, 0.5)
    predict = BitPrediction(allocator, layers)
    assert predict(0.0, layers, [8, 8, 8]) == pytest.approx(decibels(sum(n.output[8] for n in layers)))
    assert not allocator.asked
    gains = [predict(0.0, layers, [b] * 3) - decibels(sum(n.output[b] for n in layers)) for b in (4, 5, 6, 8)]
    assert gains == pytest.approx([decibels(0.5) * share for share in (1, 0.75, 0.5, 0)])


def test_layers_that_cannot_have_few_bits_add_up():
    layers = noises((7, 8))
    allocator = Allocator(layers, 0.0, 0.5)
    assert BitPrediction(allocator, layers)(0.0, layers, [7, 7, 7]) == pytest.approx(
        decibels(sum(n.output[7] for n in layers))
    )
    assert not allocator.asked


def test_the_nearest_width_there_is():
    layers = noises((2, 8))
    allocator = Allocator(layers, 0.0, 0.5)
    BitPrediction(allocator, layers)(0.0, layers, [2, 2, 2])
    assert allocator.asked == [[2, 2, 2]]


def test_no_noise():
    silent = [NoiseByBits("layer", 10, {4: 0.0, 8: 0.0}, {4: 0.0, 8: 0.0})]
    predict = BitPrediction(Allocator(silent, 0.0, 1.0), silent)
    assert predict(0.0, silent, [8]) == predict(0.0, silent, [4]) == math.inf
    assert predict(1e-3, silent, [4]) == pytest.approx(30.0)


def test_no_layers():
    assert BitPrediction(Allocator([], 1e-3, 1.0), [])(1e-3, [], []) == pytest.approx(30.0)

"""The noise that the weights of each layer make at every bit-width, and the values of each tensor: measured.

*Of its own*: the squared error of weights (values) relative to their square, the paper's 1 / SQNR of a quantiser.
*At the outputs*: what nothing but this layer (tensor), rounded, does to the network's outputs. The latter knows that
the same error costs more in some layers than in others; it needs neither gradients nor labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from tvm_int8.passes.byte_inputs import is_byte_image
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Var, shape_of
from tvm_int8.passes.quantizers import QuantizerChoice, Quantizers, WeightQuantizer
from tvm_int8.quantization.bit_widths import WeightBits
from tvm_int8.quantization.learned_weights import LearnedLayer
from tvm_int8.quantization.output_noise import OutputNoise, decibels
from tvm_int8.quantization.second_moments import SecondMoments


@dataclass(frozen=True)
class NoiseByBits:
    """Of one layer's weights, or one tensor.

    Parameters
    ----------
    name : str
        Of the layer; of the tensor, or the layer that delivers it, see `points_of`.
    count : int
        How many weights, or values per input.
    own, output : mapping of float to float
        Bits to noise power over signal power, of its own and at the outputs.
    channels : mapping of float to tuple of int
        Bits to those of every output channel, where these differ: then bits are their average, see `channel_noise`.
    """

    name: str
    count: int
    own: Mapping[Any, float]
    output: Mapping[Any, float]
    channels: Mapping[float, tuple[int, ...]] = field(default_factory=dict)

    @property
    def kappa(self) -> float:
        """Quantisation efficiency in dB per bit: the slope of SQNR = kappa * bits, by least squares."""
        pairs = [(bits, decibels(noise)) for bits, noise in self.own.items() if noise > 0]
        if not pairs:
            return UNIFORM_KAPPA
        bits, decibel = np.array(pairs).T
        return max(float(bits @ decibel / (bits @ bits)), LEAST_KAPPA)

    def at(self, widths: Sequence[float]) -> NoiseByBits:
        """The same with noise for all these widths: in dB on straight lines between those that were measured."""
        return replace(self, own=on_lines(self.own, widths), output=on_lines(self.output, widths))


UNIFORM_KAPPA = 20 * np.log10(2.0)
"""Of a uniform density."""
LEAST_KAPPA = 0.5
SILENCE = 1e-15
"""Noise below which there is none."""


class WeightsByBits:
    """Makes the weights of a network's layers with any number of bits.

    Parameters
    ----------
    flow : Dataflow
        Of the canonical float module.
    choice : QuantizerChoice
    quantizers : Quantizers
        Of all activations.
    moments : mapping of str to SecondMoments
        What convolutions read, for rounding few bits; those that are missing are rounded to nearest.
    correct_bias : bool
    """

    def __init__(
        self,
        flow: Dataflow,
        choice: QuantizerChoice,
        quantizers: Quantizers,
        moments: Mapping[str, SecondMoments],
        correct_bias: bool,
    ):
        self.choice, self.quantizers, self.moments, self.correct_bias = choice, quantizers, moments, correct_bias
        self.bindings = {b.var.name: b for b in flow.bindings if b.var.name in quantizers.weights}
        self._made: dict[tuple[str, WeightBits], WeightQuantizer] = {}
        self._learned: dict[str, LearnedLayer] = {}

    def __call__(self, name: str, bits: WeightBits) -> WeightQuantizer:
        """The weight of the convolution that binds `name`; bits of all its channels, or of each."""
        if (name, bits) not in self._made:
            self._made[name, bits] = self._make(name, bits)
        return self._made[name, bits]

    def importance(self, name: str) -> np.ndarray | None:
        """The mean square of what each weight meets, broadcastable to the weight; None where it is not known."""
        return self.choice.importance(self.bindings[name].value, self.quantizers)

    def plain(self, name: str, bits: WeightBits) -> WeightQuantizer:
        """The same rounded to nearest."""
        if not isinstance(bits, int):
            return WeightQuantizer.mixed({own: self.plain(name, own) for own in set(bits)}, bits)
        if bits >= self.quantizers.weights[name].bits:
            return self.quantizers.weights[name]
        return self.choice.weight(self.bindings[name], self.quantizers, bits)

    def _make(self, name: str, bits: WeightBits) -> WeightQuantizer:
        if not isinstance(bits, int):  # channels are rounded one by one: as in the weights that have the same bits
            return WeightQuantizer.mixed({own: self(name, own) for own in set(bits)}, bits)
        plain = self.plain(name, bits)
        if name not in self.moments or plain is self.quantizers.weights[name]:
            return plain
        if name not in self._learned:
            self._learned[name] = LearnedLayer(self.bindings[name].value, self.moments[name], self.correct_bias)
        return self._learned[name](plain)


def measure_weights(
    weights: WeightsByBits, layers: Mapping[str, str], bits: Sequence[int], noise: OutputNoise, progress: bool = True
) -> list[NoiseByBits]:
    """Measure all layers.

    Parameters
    ----------
    weights : WeightsByBits
    layers : mapping of str to str
        What a convolution binds -> its layer's name.
    bits : sequence of int
        The widths.
    noise : OutputNoise
        On a network that rounds nothing, as it is left.
    progress : bool
    """
    found = []
    for name, layer in _bar(layers.items(), "noise of weights", progress):
        exact = weights.quantizers.weights[name].exact
        own, output = {}, {}
        for width in bits:
            quantizer = weights(name, width)
            own[width] = _relative(quantizer.real - exact, exact)
            noise.network.set_weight(name, quantizer)
            output[width] = noise.measure()
        noise.network.set_weight(name, None)
        found.append(NoiseByBits(layer, exact.size, own, output))
    return found


@dataclass(frozen=True)
class Point:
    """Tensors that share their integers' scale.

    name : of the layer that delivers the first, where that is unique and is no input's; else the tensor's.
    """

    name: str
    variables: tuple[Var, ...]

    @property
    def count(self) -> int:
        """How many values the first has."""
        return int(np.prod(shape_of(self.variables[0])))


def points_of(choice: QuantizerChoice, quantizers: Quantizers) -> list[Point]:
    """What can have bits of its own among activations; images of bytes are what they are."""
    plan, origins = choice.plan, dict[Var, list[Var]]()
    for var in plan.quantized:
        origin = plan.origin(var)
        if {var.name, origin.name} <= quantizers.activations.keys() and not is_byte_image(choice.flow.value(origin)):
            origins.setdefault(origin, []).append(var)
    layers = [choice.deliverer.get(origin, "") for origin in origins]
    tensors = {origin.name for origin in origins}
    points = []
    for (origin, variables), layer in zip(origins.items(), layers, strict=True):
        unique = layer and layers.count(layer) == 1 and layer not in tensors - {origin.name}
        others = [var for var in variables if var is not origin]
        points.append(Point(layer if unique else origin.name, (origin, *others)))
    return points


def measure_activations(
    points: Sequence[Point],
    choice: QuantizerChoice,
    quantizers: Quantizers,
    bits: Sequence[int],
    noise: OutputNoise,
    tensors: Sequence[Mapping[str, np.ndarray]],
    progress: bool = True,
) -> list[NoiseByBits]:
    """Measure all tensors; `tensors` are their values for some inputs, by name, the rest as for `measure_weights`."""
    found = []
    for point in _bar(points, "noise of activations", progress):
        own, output = {}, {}
        first = point.variables[0].name
        for width in bits:
            for var in point.variables:
                rounded = choice.with_bits(var, quantizers.activations[var.name], width)
                noise.network.set_activation(var.name, rounded)
            output[width] = noise.measure()
            rounded = choice.with_bits(point.variables[0], quantizers.activations[first], width)
            exact = [values[first] for values in tensors]
            own[width] = _relative(np.array([rounded.rounded(values) - values for values in exact]), np.array(exact))
        for var in point.variables:
            noise.network.set_activation(var.name, None)
        found.append(NoiseByBits(point.name, point.count, own, output))
    return found


def on_lines(noise: Mapping, widths: Sequence[float]) -> dict:
    """Noise, float or array, for all these widths: in dB on straight lines between those that are known.

    Beyond the ends the lines go on: to more bits with the slope of a uniform density, to fewer with the next one.
    """
    known = sorted(noise)
    levels = [-10 * np.log10(np.maximum(noise[bits], SILENCE)) for bits in known]
    first = (levels[1] - levels[0]) / (known[1] - known[0]) if len(known) > 1 else UNIFORM_KAPPA
    found = {}
    for bits in widths:
        place = int(np.searchsorted(known, bits))
        if bits in noise:
            found[bits] = noise[bits]
            continue
        if place == 0:
            level = levels[0] + (bits - known[0]) * first
        elif place == len(known):
            level = levels[-1] + (bits - known[-1]) * UNIFORM_KAPPA
        else:
            share = (bits - known[place - 1]) / (known[place] - known[place - 1])
            level = (1 - share) * levels[place - 1] + share * levels[place]
        found[bits] = 10 ** (-level / 10)
    return found


def _relative(error: np.ndarray, exact: np.ndarray) -> float:
    power = float(np.square(exact, dtype=np.float64).sum())
    return float(np.square(error, dtype=np.float64).sum()) / power if power else 0.0


def _bar(items: Iterable, text: str, progress: bool):
    return tqdm(items, text, unit="layer", disable=None if progress else True)

"""`tvm_int8.allocate_bits`: how many bits each layer's weights, and each activation, should have."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tvm_int8 import api
from tvm_int8.bit_allocation import FLOAT_BITS, BitAllocation, LayerBits
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.option_checks import check_choice, invalid
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantizers import QuantizerChoice
from tvm_int8.quantization.bit_allocator import BitAllocator
from tvm_int8.quantization.bit_budget import METHODS, Goal, Item, Widths
from tvm_int8.quantization.bit_prediction import BitPrediction
from tvm_int8.quantization.bit_search import WEIGHTINGS, BitSearch, Found, items_of
from tvm_int8.quantization.bit_widths import BitWidths
from tvm_int8.quantization.channel_noise import ChannelNoise
from tvm_int8.quantization.layer_noise import NoiseByBits
from tvm_int8.quantization.mixed_precision import layers_for_sqnr
from tvm_int8.quantization.output_noise import decibels
from tvm_int8.quantization.quantize import Quantization

ALL_WIDTHS = tuple(range(1, 9))
ALL_METHODS = (*METHODS, "exhaustive")


def allocate_bits(
    model: Any,
    calibration: Any,
    *,
    target_sqnr_db: float | None = None,
    max_size_bytes: float | None = None,
    average_bits: float | None = None,
    method: str = "optimal",
    weighting: str = "sensitivity",
    activation_bits: float | None = 8,
    widths: Collection[int] = ALL_WIDTHS,
    per_channel: bool = False,
    quantization: QuantizationConfig | Mapping | str = api.DEFAULT,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> BitAllocation:
    """Give every layer the number of bits that makes the model smallest, or the outputs best.

    Exactly one of the three goals is given.

    Parameters
    ----------
    model, input_shapes, input_dtype, input_mean, input_std, progress : as for `compile`
    calibration : iterable of inputs, array or path (.npz, .npy)
        Not a table: noise is measured on the first of these inputs.
    target_sqnr_db : float, optional
        Signal-to-quantisation-noise ratio of the outputs, reached with as few bits as possible. Where 8 bits are not
        enough, some layers stay in FP32.
    max_size_bytes : float, optional
        Of all weights, packed.
    average_bits : float, optional
        Per weight; 3.5 for instance.
    method : str
        ``"optimal"``: the exact optimum of the noises measured layer by layer, and never worse, measured, than
        ``"closed_form"``, the paper's, and ``"greedy"``; ``"equal"``: as many for all; ``"exhaustive"``: all
        combinations measured, for small networks.
    weighting : str
        What noise of a layer counts: ``"sensitivity"``, what it does to the outputs; ``"sqnr"``, its own, as in the
        paper.
    activation_bits : float or None
        What activations have on average. 8: all of them; less, allocated before weights are; None: allocated along with
        the weights, a value counts as much as a weight (the paper's problem; not with `max_size_bytes`).
    widths : collection of int
        Bits that can be chosen from, 1 to 8.
    per_channel : bool
        Share each layer's bits among its output channels, by what noise of theirs does to the outputs; kept where that
        measures better than bits by layer. Not for ``"equal"`` and ``"exhaustive"``, nor with one scale for all
        channels.
    quantization : QuantizationConfig, dict of its options or name of a preset
        How the network is quantised otherwise; give `compile` the same, with ``bits``.

    Returns
    -------
    BitAllocation

    Raises
    ------
    ConfigError
        No goal or several, one that cannot be reached, or an invalid option.
    TvmInt8Error
        One of its other children, as for `compile`.

    Examples
    --------
    >>> bits = tvm_int8.allocate_bits("net.onnx", inputs, average_bits=4)                              # doctest: +SKIP
    >>> tvm_int8.compile("net.onnx", calibration=inputs, quantization=QuantizationConfig(bits=bits))   # doctest: +SKIP
    """
    goals = {"target_sqnr_db": target_sqnr_db, "max_size_bytes": max_size_bytes, "average_bits": average_bits}
    goal, wanted = _the_goal(goals)
    chosen = _checked_widths(widths)
    check_choice("method", method, ALL_METHODS)
    check_choice("weighting", weighting, WEIGHTINGS)
    _check_activation_bits(activation_bits, goal, chosen)
    config = api.resolve_config(quantization)
    if config is None or config.bits is not None:
        found = f"quantization={quantization!r}"
        raise ConfigError("allocate_bits", found, "options of quantisation, without bits", "leave these out")
    _check_per_channel(per_channel, method, config)
    config = replace(config, bits=BitWidths(), max_slowdown=0.0, min_sqnr_db=None)
    inputs = api.Inputs(input_shapes, input_dtype, input_mean, input_std)
    quantized, _ = api.quantize_for_measuring(model, calibration, config, inputs, progress)
    request = Request(goal, wanted, method, weighting, activation_bits, chosen, per_channel)
    return Allocations(quantized, chosen, progress).allocate(request)


@dataclass(frozen=True)
class Request:
    """What is wanted of an allocation: the arguments of `allocate_bits`, checked."""

    goal: str
    wanted: float
    method: str = "optimal"
    weighting: str = "sensitivity"
    activation_bits: float | None = 8
    widths: tuple[int, ...] = ALL_WIDTHS
    per_channel: bool = False


class Allocations:
    """A network whose layers are measured when first needed, and then allocated as often as wanted.

    Parameters
    ----------
    quantized : Quantization
        With 8 bits everywhere, and histograms in its table.
    widths : tuple of int
        All that will be chosen from.
    progress : bool
    """

    def __init__(self, quantized: Quantization, widths: tuple[int, ...] = ALL_WIDTHS, progress: bool = True):
        self.quantized, self.widths, self.progress = quantized, widths, progress
        self._start = time.perf_counter()

    @cached_property
    def allocator(self) -> BitAllocator:
        """What measures."""
        return BitAllocator(self.quantized, self.widths, self.progress)

    @cached_property
    def weights(self) -> list[NoiseByBits]:
        """Noise of the layers' weights."""
        return self.allocator.weight_noise()

    @cached_property
    def channels(self) -> list[ChannelNoise]:
        """Noise of the layers' output channels."""
        return self.allocator.channel_noise()

    @cached_property
    def activations(self) -> list[NoiseByBits]:
        """Noise of the activations."""
        return self.allocator.activation_noise()

    @cached_property
    def prediction(self) -> BitPrediction:
        """What foretells choices."""
        return BitPrediction(self.allocator, self.weights)

    def allocate(self, request: Request) -> BitAllocation:
        """Choose widths; `seconds` are those since the last allocation, or since the beginning.

        Raises
        ------
        ConfigError
            The goal cannot be reached, or no layer is quantised.
        """
        if not self.allocator.layers:
            found, expected = "no layer in INT8", "a convolution or a dense layer"
            raise ConfigError("allocate_bits", found, expected, "print the report of a compiled module: it says why")
        allocated = self._with_floats(request) if request.goal == "target_sqnr_db" else None
        result = allocated or self._allocate(request)
        seconds, self._start = time.perf_counter() - self._start, time.perf_counter()
        return replace(result, seconds=seconds)

    def _with_floats(self, request: Request) -> BitAllocation | None:
        """With as many layers in FP32 that the others can reach the target; None where 8 bits are enough for all."""
        allocator = self.allocator
        if allocator.reached([max(request.widths)] * len(allocator.layers)) <= 10 ** (-request.wanted / 10):
            return None
        quantized = replace(self.quantized, network=allocator.network)
        floats, _ = layers_for_sqnr(quantized.sensitivity(), request.wanted, self.progress)
        found = Allocations(quantized.without(floats), self.widths, self.progress)._allocate(request)
        rows = {row.name: row for row in found.weights}
        ordered = [
            rows.get(layer) or LayerBits(layer, size, FLOAT_BITS, math.inf, math.inf, 0.0)
            for layer, size in _weight_counts(self.quantized).items()
        ]
        return replace(found, weights=tuple(ordered))

    def _allocate(self, request: Request) -> BitAllocation:
        weights = [_restricted(noise, request.widths) for noise in self.weights]
        found = self._allocate_layers(request, weights)
        if not request.per_channel:
            return found
        shared = [own.shared(noise) for own, noise in zip(self.channels, weights, strict=True)]
        try:
            other = self._allocate_layers(request, shared)
        except ConfigError:  # by layer the goal was reached
            return found
        if request.goal == "target_sqnr_db":
            return other if other.size_bytes < found.size_bytes else found
        return other if other.measured_sqnr_db > found.measured_sqnr_db else found

    def _allocate_layers(self, request: Request, weights: list[NoiseByBits]) -> BitAllocation:
        joint = request.activation_bits is None
        activations = []
        if request.activation_bits != 8:
            activations = [_restricted(noise, request.widths) for noise in self.activations]
        items, own = (items_of(noises, request.weighting) for noises in (weights, activations))
        if joint:
            search = BitSearch(self.allocator, items + own, joint=True, progress=self.progress)
        else:
            search = BitSearch(self.allocator, items, _activation_widths(own, request), progress=self.progress)
        found = _found(search, request)
        values = found.widths[len(weights) :] if joint else (search.activations or ())
        return BitAllocation(
            tuple(_row(noise, bits) for noise, bits in zip(weights, found.widths, strict=False)),
            tuple(_row(noise, bits) for noise, bits in zip(activations, values, strict=True)),
            request.method,
            request.weighting,
            self.prediction(search.base, [*weights, *activations] if joint else weights, found.widths),
            decibels(found.measured),
            0.0,
        )


def _restricted(noise: NoiseByBits, widths: Sequence[int]) -> NoiseByBits:
    return replace(noise, own={b: noise.own[b] for b in widths}, output={b: noise.output[b] for b in widths})


def _activation_widths(items: list[Item], request: Request) -> Widths | None:
    if not items:
        return None
    assert request.activation_bits is not None
    budget = request.activation_bits * sum(item.count for item in items)
    chosen = METHODS.get(request.method, METHODS["optimal"])(items, Goal(budget=budget))
    if chosen is None:
        expected = f"at least {min(request.widths)}"
        raise ConfigError("option 'activation_bits'", repr(request.activation_bits), expected, "allow fewer in widths")
    return chosen


def _found(search: BitSearch, request: Request) -> Found:
    """What the search finds; an error that says what could be had, where it finds nothing."""
    count = sum(item.count for item in search.items)
    if request.goal == "target_sqnr_db":
        found = search.quiet(request.method, 10 ** (-request.wanted / 10))
    else:
        budget = count * request.wanted if request.goal == "average_bits" else 8 * request.wanted
        found = search.within(request.method, budget)
    if found is not None:
        return found
    where = f"option '{request.goal}'"
    if request.goal == "target_sqnr_db":
        most = decibels(search.measured([max(item.noise) for item in search.items]))
        expected = f"at most {most:.1f}, which {max(request.widths)} bits reach"
        raise ConfigError(where, repr(request.wanted), expected, "ask for less, or leave layers in FP32 (exclude)")
    least = min(request.widths)
    limit = least if request.goal == "average_bits" else math.ceil(count * least / 8)
    expected = f"at least {limit}, which {least} bits everywhere take"
    raise ConfigError(where, repr(request.wanted), expected, "allow more, or fewer bits in widths")


def _row(noise: NoiseByBits, bits: float) -> LayerBits:
    own, output, channels = decibels(noise.own[bits]), decibels(noise.output[bits]), noise.channels.get(bits)
    whole = bits if channels else int(bits)
    return LayerBits(noise.name, noise.count, whole, own, output, noise.kappa, channels)


def _weight_counts(quantized: Quantization) -> dict[str, int]:
    """Weights of the layers that are quantised, in the order of the network."""
    flow = Dataflow(quantized.float_mod)
    layers = QuantizerChoice(flow, plan_quantization(flow, quantized.config), quantized.table, quantized.config).layers
    return {layer: quantized.quantizers.weights[name].exact.size for name, layer in layers.items()}


def _the_goal(goals: Mapping[str, float | None]) -> tuple[str, float]:
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ConfigError("allocate_bits", found, "one of " + ", ".join(goals), "say what is wanted, once")
    ((name, value),) = given.items()
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (name != "target_sqnr_db" and value <= 0):
        raise invalid(name, value, "a finite number" + ("" if name == "target_sqnr_db" else " above 0"))
    return name, float(value)


def _checked_widths(widths: Collection[int]) -> tuple[int, ...]:
    try:
        chosen = tuple(sorted(set(widths)))
    except TypeError:
        chosen = ()
    if not chosen or not all(type(bits) is int and bits in ALL_WIDTHS for bits in chosen):
        raise invalid("widths", widths, "some whole numbers from 1 to 8")
    return chosen


def _check_per_channel(per_channel: bool, method: str, config: QuantizationConfig) -> None:
    if not isinstance(per_channel, bool):
        raise invalid("per_channel", per_channel, "True or False")
    if per_channel and method in ("equal", "exhaustive"):
        raise invalid("per_channel", per_channel, f"False with method={method!r}")
    if per_channel and not config.per_channel_weights:
        raise invalid("per_channel", per_channel, "False with one scale for all channels (per_channel_weights=False)")


def _check_activation_bits(value: float | None, goal: str, widths: Sequence[int]) -> None:
    if value is None:
        if goal == "max_size_bytes":
            raise invalid("activation_bits", value, "a number with max_size_bytes: activations have no size in a file")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and (value == 8 or min(widths) <= value < 8)):
        raise invalid("activation_bits", value, f"a number from {min(widths)} to 8, or None")


__all__ = ["allocate_bits"]

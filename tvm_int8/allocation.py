"""`tvm_int8.allocate_bits`: how many bits each layer's weights, and each activation, should have."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm_int8 import api
from tvm_int8.bit_allocation import FLOAT_BITS, BitAllocation, LayerBits
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.option_checks import check_choice, invalid
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.bit_allocator import BitAllocator
from tvm_int8.quantization.bit_budget import METHODS, Goal, Item, Widths
from tvm_int8.quantization.bit_search import WEIGHTINGS, BitSearch, Found, items_of
from tvm_int8.quantization.bit_widths import BitWidths
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
    config = replace(config, bits=BitWidths(), max_slowdown=0.0, min_sqnr_db=None)
    inputs = api.Inputs(input_shapes, input_dtype, input_mean, input_std)
    quantized, _ = api.quantize_for_measuring(model, calibration, config, inputs, progress)
    start = time.perf_counter()
    allocation = _Allocation(quantized, chosen, method, weighting, activation_bits, progress)
    return replace(allocation.run(goal, wanted), seconds=time.perf_counter() - start)


class _Allocation:
    def __init__(
        self,
        quantized: Quantization,
        widths: tuple[int, ...],
        method: str,
        weighting: str,
        activation_bits: float | None,
        progress: bool,
    ):
        self.quantized, self.widths, self.progress = quantized, widths, progress
        self.method, self.weighting, self.activation_bits = method, weighting, activation_bits
        self.floats: list[str] = []

    def run(self, goal: str, wanted: float) -> BitAllocation:
        """Measure, choose, and say what was found; `seconds` are missing."""
        allocator = BitAllocator(self.quantized, self.widths, self.progress)
        if goal == "target_sqnr_db":
            allocator = self._loud_enough(allocator, 10 ** (-wanted / 10))
        weights = allocator.weight_noise()
        activations = [] if self.activation_bits == 8 else allocator.activation_noise()
        search = self._search(allocator, weights, activations)
        if goal == "target_sqnr_db":
            found = search.quiet(self.method, 10 ** (-wanted / 10))
        else:
            total = sum(item.count for item in search.items)
            found = search.within(self.method, total * wanted if goal == "average_bits" else 8 * wanted)
        if found is None:
            raise self._unreachable(goal, wanted, search)
        return self._result(allocator, weights, activations, search, found)

    def _loud_enough(self, allocator: BitAllocator, allowed: float) -> BitAllocator:
        """With enough layers in FP32 that all others can reach the target with the largest width."""
        most = [max(self.widths)] * len(allocator.layers)
        if allocator.reached(most) <= allowed:
            return allocator
        quantized = replace(self.quantized, network=allocator.network)
        self.floats, _ = layers_for_sqnr(quantized.sensitivity(), decibels(allowed), self.progress)
        return BitAllocator(quantized.without(self.floats), self.widths, self.progress)

    def _search(self, allocator: BitAllocator, weights: list[NoiseByBits], activations: list[NoiseByBits]) -> BitSearch:
        items = items_of(weights, self.weighting)
        own = items_of(activations, self.weighting)
        if self.activation_bits is None:
            return BitSearch(allocator, items + own, joint=True, progress=self.progress)
        return BitSearch(allocator, items, self._activation_widths(own), progress=self.progress)

    def _activation_widths(self, items: list[Item]) -> Widths | None:
        if not items:
            return None
        assert self.activation_bits is not None
        budget = self.activation_bits * sum(item.count for item in items)
        chosen = METHODS.get(self.method, METHODS["optimal"])(items, Goal(budget=budget))
        if chosen is None:
            expected = f"at least {min(self.widths)}"
            raise ConfigError("option 'activation_bits'", repr(self.activation_bits), expected, "allow fewer in widths")
        return chosen

    def _unreachable(self, goal: str, wanted: float, search: BitSearch) -> ConfigError:
        least = [min(item.noise) for item in search.items]
        bits = sum(item.count * b for item, b in zip(search.items, least, strict=True))
        where = f"option '{goal}'"
        if goal == "target_sqnr_db":
            most = [max(item.noise) for item in search.items]
            expected = f"at most {decibels(search.measured(most)):.1f}, which {max(self.widths)} bits reach"
            return ConfigError(where, repr(wanted), expected, "ask for less, or leave layers in FP32 (exclude)")
        limit = bits / 8 if goal == "max_size_bytes" else bits / sum(item.count for item in search.items)
        expected = f"at least {limit:g}, which {min(self.widths)} bits everywhere take"
        if self.method == "exhaustive":
            expected += ", and the largest widths not all within the limit"
        return ConfigError(where, repr(wanted), expected, "allow more, or fewer bits in widths")

    def _result(
        self,
        allocator: BitAllocator,
        weights: list[NoiseByBits],
        activations: list[NoiseByBits],
        search: BitSearch,
        found: Found,
    ) -> BitAllocation:
        count = len(weights)
        rows = {noise.name: _row(noise, bits) for noise, bits in zip(weights, found.widths[:count], strict=True)}
        values = found.widths[count:] if search.joint else (search.activations or [8] * len(activations))
        counts = _weight_counts(self.quantized)
        ordered = [
            rows.get(layer) or LayerBits(layer, size, FLOAT_BITS, math.inf, math.inf, 0.0)
            for layer, size in counts.items()
        ]
        chosen = zip([*weights, *activations] if search.joint else weights, found.widths, strict=True)
        predicted = search.base + sum(noise.output[bits] for noise, bits in chosen)
        return BitAllocation(
            tuple(ordered),
            tuple(_row(noise, bits) for noise, bits in zip(activations, values, strict=True)),
            self.method,
            self.weighting,
            decibels(predicted),
            decibels(found.measured),
            0.0,
        )


def _row(noise: NoiseByBits, bits: int) -> LayerBits:
    own, output = decibels(noise.own[bits]), decibels(noise.output[bits])
    return LayerBits(noise.name, noise.count, bits, own, output, noise.kappa)


def _weight_counts(quantized: Quantization) -> dict[str, int]:
    """Weights of the layers that could be quantised, in the order of the network."""
    units = plan_quantization(Dataflow(quantized.float_mod), quantized.config).units
    return {u.layer: const_value(u.group.anchor.value.args[1]).size for u in units if u.kind == "compute"}


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


def _check_activation_bits(value: float | None, goal: str, widths: Sequence[int]) -> None:
    if value is None:
        if goal == "max_size_bytes":
            raise invalid("activation_bits", value, "a number with max_size_bytes: activations have no size in a file")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and (value == 8 or min(widths) <= value < 8)):
        raise invalid("activation_bits", value, f"a number from {min(widths)} to 8, or None")


__all__ = ["allocate_bits"]

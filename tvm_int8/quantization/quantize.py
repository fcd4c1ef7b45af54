"""From a float network to QDQ, step by step: equalise, calibrate, choose quantisers, improve them, leave out layers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import tvm

from tvm_int8 import pipeline
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import CalibrationError
from tvm_int8.passes.batch_norm_outputs import batch_norm_outputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantizers import QuantizerChoice, Quantizers
from tvm_int8.quantization.bias_correction import analytic_means
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.learned_weights import learn_weights
from tvm_int8.quantization.mixed_precision import layers_for_slowdown, layers_for_sqnr
from tvm_int8.quantization.range_search import search_ranges
from tvm_int8.quantization.ranges import Reference, find_ranges
from tvm_int8.quantization.sensitivity import Sensitivity, excluding, restricted
from tvm_int8.quantization.simulated_network import SimulatedNetwork
from tvm_int8.quantization.weights_in_order import learn_weights_in_order
from tvm_int8.quantization.winograd_choice import choose_winograd

LEARNING_INPUTS = 128
"""Inputs that weights are rounded for, and on which, time permitting, ranges and layers are compared."""


@dataclass(frozen=True)
class Quantization:
    """A float network and how it is quantised.

    float_mod : canonical float module
    config : its `float_layers` are those left in FP32 for accuracy, too
    table, quantizers, reference : what it is quantised with, and on
    network : what searches have looked at so far, if they have
    """

    float_mod: tvm.IRModule
    config: QuantizationConfig
    table: CalibrationTable
    quantizers: Quantizers
    reference: Reference
    network: SimulatedNetwork | None = None

    def mod(self) -> tvm.IRModule:
        """The QDQ module."""
        return pipeline.quantize(self.table, self.config, self.quantizers)(self.float_mod)

    def without(self, layers: Collection[str]) -> Quantization:
        """The same with more layers in FP32."""
        config = excluding(self.config, layers)
        return replace(self, config=config, quantizers=restricted(Dataflow(self.float_mod), config, self.quantizers))

    def sensitivity(self) -> Sensitivity:
        """What tells how much noise its layers make."""
        return Sensitivity(self.float_mod, self.config, self.quantizers, self.reference.batches, self.network)


def equalized(imported: tvm.IRModule, config: QuantizationConfig) -> tvm.IRModule:
    """The canonical float module that is calibrated."""
    mod = pipeline.canonical_float()(imported)
    return pipeline.equalize(imported)(mod) if config.equalization else mod


def quantize_network(
    imported: tvm.IRModule, calibration: Any, config: QuantizationConfig, progress: bool
) -> Quantization:
    """Quantise what the frontend delivers; parameters as for `tvm_int8.quantize`.

    Raises
    ------
    CalibrationError
        Bad data, or a table where options need data.
    """
    mod = equalized(imported, config)
    batch_norms = batch_norm_outputs(imported, mod) if calibration is None else {}
    table, reference = find_ranges(mod, calibration, config, progress, batch_norms, LEARNING_INPUTS)
    if needs_data(config) and not reference.typical:
        found, expected = f"a table, with {', '.join(needs_data(config))}", "the inputs, which these options look at"
        raise CalibrationError("calibration", found, expected, "pass the calibration data itself")
    means = analytic_means(imported, mod) if config.bias_correction == "analytic" else None
    flow = Dataflow(mod)
    choice = QuantizerChoice(flow, plan_quantization(flow, config), table, config, means)
    quantizers, network = choice.run(), None
    if config.range_search:
        network = SimulatedNetwork(mod, quantizers)
        quantizers = search_ranges(mod, choice, network, reference.batches, progress)
    quantizers = _learned(mod, quantizers, config, reference, progress)
    quantizers = replace(quantizers, winograd=choose_winograd(flow, quantizers, table, config))
    quantized = Quantization(mod, config, table, quantizers, reference, network)
    floats = _layers_in_float(quantized, progress)
    return quantized.without(floats) if floats else quantized


def _learned(
    mod: tvm.IRModule, quantizers: Quantizers, config: QuantizationConfig, reference: Reference, progress: bool
) -> Quantizers:
    """Weights rounded for data: all if asked to; those that were given fewer bits in order, wherever there are data."""
    corrects = config.bias_correction != "none"
    asked = config.rounding == "learned"
    few = few_bits(quantizers, config) if asked or reference.typical else []
    many = [name for name in quantizers.weights if asked and name not in few]
    for learn, names in ((learn_weights, many), (learn_weights_in_order, few)):
        if names:
            quantizers = learn(mod, quantizers, reference.network, reference.batches, corrects, progress, names)
    return quantizers


def few_bits(quantizers: Quantizers, config: QuantizationConfig) -> list[str]:
    """The weights that were given fewer bits than the others have, and are not to be rounded to nearest."""
    if config.bits is None or config.rounding == "nearest":
        return []
    return [name for name, weight in quantizers.weights.items() if weight.bits < config.weight_bits]


def needs_data(config: QuantizationConfig) -> list[str]:
    """The options that look at calibration data again after calibration."""
    asked = {
        "rounding='learned'": config.rounding == "learned",
        "range_search": config.range_search,
        "max_slowdown": config.max_slowdown > 0,
        "min_sqnr_db": config.min_sqnr_db is not None,
    }
    return [option for option, is_asked in asked.items() if is_asked]


def _layers_in_float(quantized: Quantization, progress: bool) -> list[str]:
    config = quantized.config
    if config.min_sqnr_db is None and not config.max_slowdown:
        return []
    if config.min_sqnr_db is not None:
        return layers_for_sqnr(quantized.sensitivity(), config.min_sqnr_db, progress)[0]
    return layers_for_slowdown(quantized.sensitivity(), config.max_slowdown, progress)[0]

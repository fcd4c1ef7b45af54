"""From a float network to QDQ, step by step: equalise, calibrate, choose quantisers, improve them, leave out layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
from tvm_int8.quantization.sensitivity import Sensitivity
from tvm_int8.quantization.simulated_network import SimulatedNetwork
from tvm_int8.quantization.weights import weight_limit

LEARNING_INPUTS = 64
"""Inputs that weights are rounded for and ranges are compared on."""
SENSITIVITY_INPUTS = 8
"""Inputs that layers are switched on and off for, twice for each."""
MOST_TRIES = 3


@dataclass(frozen=True)
class Quantization:
    """A quantised network and how it came about.

    mod, float_mod : QDQ module, and the float one it was made of
    config : with the layers that were left in FP32 among the excluded ones
    table, quantizers, reference : what it was made with
    """

    mod: tvm.IRModule
    float_mod: tvm.IRModule
    config: QuantizationConfig
    table: CalibrationTable
    quantizers: Quantizers
    reference: Reference


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
        found = f"a calibration table, and {', '.join(needs_data(config))}"
        raise CalibrationError(
            "calibration", found, "the inputs themselves, which these options look at", "pass the calibration data"
        )
    means = analytic_means(imported, mod) if config.bias_correction == "analytic" else None
    quantizers = _improved(mod, table, config, reference, means, progress)
    for attempt in range(MOST_TRIES):
        floats = _layers_in_float(mod, config, quantizers, reference, progress, tighter_db=0.5 * attempt)
        if not floats:
            break
        narrowed = replace(config, exclude=(*config.exclude, *floats))
        candidates = _improved(mod, table, narrowed, reference, means, progress)
        if attempt == MOST_TRIES - 1 or _reaches(mod, narrowed, candidates, reference):
            config, quantizers = narrowed, candidates
            break
    return Quantization(pipeline.quantize(table, config, quantizers)(mod), mod, config, table, quantizers, reference)


def needs_data(config: QuantizationConfig) -> list[str]:
    """The options that look at calibration data again after calibration."""
    asked = {
        "rounding='learned'": config.rounding == "learned",
        "range_search": config.range_search,
        "max_slowdown": config.max_slowdown > 0,
        "min_sqnr_db": config.min_sqnr_db is not None,
    }
    return [option for option, is_asked in asked.items() if is_asked]


def _improved(
    mod: tvm.IRModule,
    table: CalibrationTable,
    config: QuantizationConfig,
    reference: Reference,
    means: Mapping[str, np.ndarray] | None,
    progress: bool,
) -> Quantizers:
    """Quantisers from the table, then whatever the options want to be learnt from data."""
    flow = Dataflow(mod)
    choice = QuantizerChoice(flow, plan_quantization(flow, config), table, config, means)
    quantizers = choice.run()
    if config.range_search:
        quantizers = search_ranges(mod, choice, SimulatedNetwork(mod, quantizers), reference.batches, progress)
    if config.rounding == "learned":
        corrects, limit = config.bias_correction != "none", weight_limit(config.weight_bits)
        quantizers = learn_weights(mod, quantizers, reference.batches, limit, corrects, progress)
    return quantizers


def _layers_in_float(
    mod: tvm.IRModule,
    config: QuantizationConfig,
    quantizers: Quantizers,
    reference: Reference,
    progress: bool,
    tighter_db: float,
) -> list[str]:
    if config.min_sqnr_db is None and not config.max_slowdown:
        return []
    sensitivity = Sensitivity(mod, config, quantizers, reference.batches[:SENSITIVITY_INPUTS])
    if config.min_sqnr_db is not None:
        return layers_for_sqnr(sensitivity, config.min_sqnr_db + tighter_db, progress)[0]
    return layers_for_slowdown(sensitivity, config.max_slowdown, progress)[0]


def _reaches(mod: tvm.IRModule, config: QuantizationConfig, quantizers: Quantizers, reference: Reference) -> bool:
    """Whether what is left in INT8, quantised anew, still has the SQNR wanted."""
    if config.min_sqnr_db is None:
        return True
    batches = reference.batches[:SENSITIVITY_INPUTS]
    return Sensitivity(mod, config, quantizers, batches).sqnr_db() >= config.min_sqnr_db

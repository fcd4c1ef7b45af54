"""`analyze`: quantise a network, then measure layer by layer what that does to its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm_int8 import api
from tvm_int8.analysis.analysis import Analysis
from tvm_int8.analysis.results import LayerAnalysis
from tvm_int8.analysis.suggestions import suggest
from tvm_int8.analysis.tensors import analyze_activations, analyze_weight, anchor
from tvm_int8.analysis.times import Times, estimated_times, measured_times
from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError, ModelError
from tvm_int8.passes.quantization_plan import Unit
from tvm_int8.quantization.quantize import LEARNING_INPUTS, Quantization
from tvm_int8.quantization.sensitivity import LayerSensitivity, Sensitivity
from tvm_int8.report import is_multiplying
from tvm_int8.runtime import CompiledModule
from tvm_int8.target import missing_features, parse_target

INPUTS = 8
"""Each of which is run twice per layer."""


def analyze(
    model: Any,
    calibration: Any,
    quantization: QuantizationConfig | Mapping | str = api.DEFAULT,
    *,
    target: Any = "native",
    inputs: int = INPUTS,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> Analysis:
    """Find out where quantisation error comes from.

    The network is quantised as `compile` would. Then every layer is quantised alone, and left out alone, which runs the
    network twice per layer and input; and layer after layer is left in FP32, those first that bring most noise for
    their time.

    Parameters
    ----------
    model : as for `compile`
        A float network: neither QDQ nor a `QuantizedModel`.
    calibration : iterable of inputs, array or path (.npz, .npy)
        As for `compile`, but not a table: the noise is measured on the first of these inputs.
    quantization : QuantizationConfig, dict of its options or name of a preset
    target : as for `compile`
        Times are measured if its code runs on this machine, otherwise estimated.
    inputs : int
        Batches of the calibration data that noise and distributions are measured on, at most: as many as time
        allows; 1 to 128.
    input_shapes, input_dtype, input_mean, input_std, progress : as for `compile`

    Returns
    -------
    Analysis
        Print it for a table; ``.suggestions`` are layers for FP32, ``.to_html(path)`` writes a page with pictures.

    Raises
    ------
    CalibrationError
        No calibration data, or a table; a network that brings its own scales.
    TvmInt8Error
        Others of its children, as for `compile`.
    """
    config = _checked(quantization, inputs)
    runs_here = not missing_features(parse_target(target).features)
    options = api.Inputs(input_shapes, input_dtype, input_mean, input_std)
    found, notes = api.quantize_for_measuring(model, calibration, config, options, progress)
    return _analyzed(found, notes, target if runs_here else None, inputs, progress)


def _checked(quantization: Any, inputs: Any) -> QuantizationConfig:
    """The options of quantisation, if they and the number of inputs make sense."""
    config = api.resolve_config(quantization)
    if config is None:
        found, expected = "None", "options of quantisation"
        raise ConfigError("option 'quantization'", found, expected, "leave it out for the defaults")
    if not isinstance(inputs, int) or isinstance(inputs, bool) or not 1 <= inputs <= LEARNING_INPUTS:
        expected = f"a whole number from 1 to {LEARNING_INPUTS}"
        raise ConfigError("option 'inputs'", repr(inputs), expected, "leave it out for the default")
    return config


def _analyzed(found: Quantization, notes: Mapping[str, Any], target: Any, inputs: int, progress: bool) -> Analysis:
    sensitivity = Sensitivity(found.float_mod, found.config, found.quantizers, found.reference.batches[:inputs])
    if not sensitivity.layers:
        expected, action = "at least one convolution or dense layer", "look at the options 'exclude' and 'float_layers'"
        raise ModelError("model", "no layer that computes in INT8", expected, action)
    units, batches = sensitivity.units, sensitivity.batches
    measured = sensitivity.measure(progress)
    module, times = _timed(found, notes, target, measured)
    suggestions = suggest(sensitivity, times, found.config.float_layers, progress)
    return Analysis(
        _layers(found, module, units, times.layers, batches),
        tuple(suggestions),
        sensitivity.sqnr_db(),
        len(batches),
        times.unit,
        times.int8,
        times.floating,
        times.conditions,
        {r.layer: r.reason for r in module.report if r.layer not in units and is_multiplying(r.op)},
    )


def _timed(
    found: Quantization, notes: Mapping[str, Any], target: Any, measured: Sequence[LayerSensitivity]
) -> tuple[CompiledModule, Times]:
    """The INT8 module and its layers' times; `target` None stands for one whose code does not run here.

    Integers are the same on every target, so noise can be measured here all the same.
    """
    quantized = api.quantized_model(found, notes)
    if target is None:
        return api.compile(quantized), estimated_times(measured)
    module = api.compile(quantized, target)
    plain = replace(quantized, mod=found.float_mod, config=None, table=None, reference=None)
    floating = api.compile(plain, target)
    return module, measured_times(measured, module, floating, found.reference.batch)


def _layers(
    found: Quantization,
    module: CompiledModule,
    units: Mapping[str, Unit],
    measured: Sequence[LayerSensitivity],
    batches: Sequence,
) -> tuple[LayerAnalysis, ...]:
    """What was measured of every layer, beside what its quantisers do."""
    delivered = {row.layer: row.sqnr_db for row in module.report}  # a layer's last row is its own
    activations = analyze_activations(found, units, batches)
    noise = sum(layer.alone for layer in measured)
    return tuple(
        LayerAnalysis(
            layer.layer,
            layer.op,
            delivered.get(layer.layer),
            layer.alone_db,
            layer.without_db,
            layer.alone / noise if noise else 1 / len(measured),
            layer.int8_time,
            layer.float_time,
            analyze_weight(found.quantizers.weights[anchor(units[layer.layer]).var.name]),
            activations[layer.layer],
        )
        for layer in measured
    )

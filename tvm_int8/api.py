"""The public functions: compile, quantize, calibrate, load."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from tvm_int8 import pipeline
from tvm_int8.build import lower_and_build
from tvm_int8.config import QuantizationConfig
from tvm_int8.describe import describe
from tvm_int8.errors import CalibrationError, ConfigError
from tvm_int8.frontend import load_model
from tvm_int8.memory import memory_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.passes.float_reasons import float_reasons
from tvm_int8.passes.order_winograd import by_layer
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantized_values import multiplies_integers
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.layer_sqnr import layer_sqnr
from tvm_int8.quantization.quantize import Quantization, equalized, quantize_network
from tvm_int8.quantization.ranges import observe_ranges
from tvm_int8.quantized_model import QuantizedModel
from tvm_int8.runtime import CompiledModule, load
from tvm_int8.target import missing_features, parse_target
from tvm_int8.tuning.lookup import SHIPPED, Lookup, lookup

DEFAULT = QuantizationConfig()


def compile(
    model: Any,
    target: Any = "native",
    calibration: Any = None,
    quantization: QuantizationConfig | Mapping | str | None = DEFAULT,
    tuning_logs: Any = SHIPPED,
    num_threads: int | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> CompiledModule:
    """Compile a trained network into a module that runs in INT8 (or FP32).

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, tvm.IRModule, torch.export.ExportedProgram or QuantizedModel
        The network; a QDQ model brings its own scales. What `quantize` returned takes neither `calibration` nor
        `quantization` nor options of inputs.
    target : str, dict or tvm.target.Target
        "native" (this machine), "llvm -mcpu=cascadelake", or a bare mcpu.
    calibration : iterable of inputs, array, CalibrationTable, or path (.npz, .npy, .json)
        Typical inputs, preprocessed as for inference; or the table `calibrate` made of them. None: synthetic inputs in
        the values that fit the model's batch norms best, with a warning.
    quantization : QuantizationConfig, dict of its options, name of a preset ("fast", "default", "best") or None
        None compiles FP32 with the same schedules.
    tuning_logs : path, sequence of paths, "shipped" or None
        Where the knobs of convolutions and dense layers come from: logs that `tune` wrote, first of all; then the log
        shipped for this CPU, then the one for the CPU most like it, then a model of the CPU. None: that model alone.
    num_threads : int, optional
        Threads of the compiled module; default: TVM_NUM_THREADS or all cores.
    input_shapes : dict of name -> shape, optional
        Fixes symbolic dimensions.
    input_dtype : str, optional
        "uint8": the compiled module takes images of bytes, and so does calibration. The model, whose inputs must be
        float32 images, gets (byte - input_mean) / input_std.
    input_mean, input_std : number or sequence of numbers, optional
        Per channel, in grey levels: (123.7, 116.3, 103.5) and (58.4, 57.1, 57.4) for models trained on ImageNet. By
        default 0 and 1: the model normalises bytes itself.
    progress : bool
        Show a progress bar while calibrating.

    Returns
    -------
    CompiledModule

    Raises
    ------
    TvmInt8Error
        One of its children, saying where, what was found, what was expected and what to do.
    """
    config = resolve_config(quantization)
    _check_threads(num_threads)
    resolved = parse_target(target)
    if num_threads is not None:
        resolved = replace(resolved, cpu=replace(resolved.cpu, threads=num_threads))
    choose = lookup(tuning_logs, resolved)
    inputs = Inputs(input_shapes, input_dtype, input_mean, input_std)
    if isinstance(model, QuantizedModel):
        _refuse_to_quantize_again(calibration, quantization, inputs)
        quantized = model
    else:
        quantized = _quantize(model, calibration, config, inputs, progress)
    tiles = _tiles(quantized, choose)
    executable, rows, planned = lower_and_build(quantized.mod, resolved.tvm_target, resolved.cpu, choose, tiles)
    packed = [row["packed"] for row in rows if row["packed"] is not None]
    memory = memory_of(planned, resolved.cpu.threads, packed)

    def metadata(sqnr=None):
        reasons, notes = _reasons(quantized), quantized.notes
        return describe(quantized.float_mod, rows, resolved, num_threads, reasons, sqnr, notes, memory)

    module, reference = CompiledModule(executable, metadata(), packed), quantized.reference
    if reference is None or missing_features(resolved.features):
        return module
    sqnr = layer_sqnr(module, rows, reference.network, reference.batch)
    return CompiledModule(executable, metadata(sqnr), packed)


def quantize(
    model: Any,
    calibration: Any = None,
    config: QuantizationConfig | Mapping | str = DEFAULT,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> QuantizedModel:
    """Quantise a trained network without compiling it: to export it as ONNX, or to compile it for several targets.

    Parameters
    ----------
    model, calibration : as for `compile`
    config : QuantizationConfig, dict of its options or name of a preset
        As `quantization` of `compile`. Other runtimes compute in INT8 only with ``per_channel_activations=False``, ONNX
        Runtime only with ``plain_convolutions=True``, too.
    input_shapes, input_dtype, input_mean, input_std, progress : as for `compile`

    Returns
    -------
    QuantizedModel
        ``.to_onnx(path)`` writes it as QDQ ONNX; ``compile(quantized, target)`` compiles it.

    Raises
    ------
    TvmInt8Error
        One of its children, as for `compile`.
    """
    chosen = resolve_config(config)
    if chosen is None:
        raise ConfigError("option 'config'", "None", "options of quantisation", "leave it out for the defaults")
    inputs = Inputs(input_shapes, input_dtype, input_mean, input_std)
    return _quantize(model, calibration, chosen, inputs, progress)


def calibrate(
    model: Any,
    data: Any,
    method: str | None = None,
    config: QuantizationConfig | Mapping | str | None = None,
    *,
    keep_histograms: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_dtype: str | None = None,
    input_mean: float | Sequence[float] | None = None,
    input_std: float | Sequence[float] | None = None,
    progress: bool = True,
) -> CalibrationTable:
    """Observe the ranges of a network's activations on typical inputs, in one sweep.

    Parameters
    ----------
    model : as for `compile`
    data : iterable of inputs, array, or path (.npz, .npy)
    method : str, optional
        The calibrator ("minmax", "entropy", "auto", ...); overrides `config.method`.
    config : QuantizationConfig, dict of its options or name of a preset, optional
    keep_histograms : bool
        Put the distribution of every tensor's values into the table, some kilobytes for each.
    input_shapes, input_dtype, input_mean, input_std : as for `compile`, which must be given the same

    Returns
    -------
    CalibrationTable
        Save it with `.save(path)`; `compile(model, calibration=table)` uses it.
    """
    chosen = resolve_config(config) or DEFAULT
    if method is not None:
        chosen = replace(chosen, method=method)
    inputs = Inputs(input_shapes, input_dtype, input_mean, input_std)
    imported = inputs.load(model)
    if is_quantized(imported):
        raise CalibrationError(
            "model", "a QDQ model", "a float model", "its scales are in it already: compile it as it is"
        )
    return observe_ranges(equalized(imported, chosen), data, chosen, progress, keep_histograms)


def resolve_config(quantization: Any) -> QuantizationConfig | None:
    """What a user gave as options of quantisation."""
    if quantization is None or isinstance(quantization, QuantizationConfig):
        return quantization
    if isinstance(quantization, Mapping):
        return QuantizationConfig.from_dict(quantization)
    if isinstance(quantization, str):
        return QuantizationConfig.preset(quantization)
    raise ConfigError(
        "option 'quantization'",
        f"a {type(quantization).__name__}",
        "a QuantizationConfig, a dict of its options, the name of a preset, or None",
        "pass one of these",
    )


@dataclass(frozen=True)
class Inputs:
    """How the user wants the network's inputs."""

    shapes: Mapping[str, Sequence[int]] | None
    dtype: str | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None

    def load(self, model: Any) -> tvm.IRModule:
        """The imported module, its inputs as wanted."""
        if self.dtype not in (None, "uint8"):
            expected = "'uint8', or None for the model's own"
            raise ConfigError("option 'input_dtype'", repr(self.dtype), expected, "pass one of these")
        if self.dtype is None:
            for option, given in (("input_mean", self.mean), ("input_std", self.std)):
                if given is not None:
                    action, expected = "pass both, or normalise the inputs yourself", "it with input_dtype='uint8'"
                    raise ConfigError(f"option '{option}'", "given alone", expected, action)
            return load_model(model, self.shapes)
        return pipeline.byte_inputs(self.mean, self.std)(load_model(model, self.shapes))

    def notes(self) -> dict[str, Any]:
        """For a compiled module's metadata."""
        given = {} if self.dtype is None else {"input_mean": self.mean, "input_std": self.std}
        return {name: np.ravel(values).tolist() for name, values in given.items() if values is not None}


def _quantize(
    model: Any, calibration: Any, config: QuantizationConfig | None, inputs: Inputs, progress: bool
) -> QuantizedModel:
    """Import, find the ranges, insert QDQ; with config None, import alone."""
    imported, notes = inputs.load(model), inputs.notes()
    if config is None or is_quantized(imported):
        mod = pipeline.canonical_float()(imported)
        if config is None:
            return QuantizedModel(mod, mod, None, notes=notes)
        if calibration is not None:
            warnings.warn(
                "the model is quantised already (QDQ): its own scales are used, calibration is ignored", stacklevel=3
            )
        return QuantizedModel(mod, mod, config, notes={**notes, "ranges": "the model's own QDQ scales"})
    notes["ranges"] = "calibration" if calibration is not None else "data-free"
    found = quantize_network(imported, calibration, config, progress)
    return quantized_model(found, notes)


def quantize_for_measuring(
    model: Any, calibration: Any, config: QuantizationConfig, inputs: Inputs, progress: bool
) -> tuple[Quantization, dict[str, Any]]:
    """A float network quantised on data that can be run again, and its notes: for what measures noise or accuracy.

    Raises
    ------
    CalibrationError
        No calibration data, or a table; a network that brings its own scales.
    """
    expected = "a float model, whose layers can be quantised one at a time"
    action = "analyse the network it was quantised from"
    if isinstance(model, QuantizedModel):
        raise CalibrationError("model", "a QuantizedModel", expected, action)
    data = "typical inputs, which noise is measured on"
    pass_data = "pass the calibration data itself: an array, .npz, ..."
    if calibration is None:
        raise CalibrationError("calibration", "None", data, pass_data)
    imported = inputs.load(model)
    if is_quantized(imported):
        raise CalibrationError("model", "a QDQ model", expected, action)
    found = quantize_network(imported, calibration, config, progress)
    if not found.reference.typical:
        raise CalibrationError("calibration", "a calibration table", data, pass_data)
    return found, {**inputs.notes(), "ranges": "calibration"}


def quantized_model(found: Quantization, notes: Mapping[str, Any]) -> QuantizedModel:
    """What `quantize` returns."""
    ways = by_layer(Dataflow(found.float_mod), found.quantizers.winograd)
    parts = found.mod(), found.float_mod, found.config, found.table, notes, found.reference, ways, found.quantizers
    return QuantizedModel(*parts)


def _tiles(quantized: QuantizedModel, choose: Lookup) -> tvm.transform.Pass | None:
    """What puts convolutions into the Winograd domain; None where the options want none there."""
    config = quantized.config
    if config is not None and config.winograd == "off":
        return None
    always = config is not None and config.winograd == "always"
    return pipeline.tile(quantized.winograd, choose.cpu, always, choose.times_us)


def _refuse_to_quantize_again(calibration: Any, quantization: Any, inputs: Inputs) -> None:
    given = {"calibration": calibration, "quantization": None if quantization is DEFAULT else quantization}
    given |= {f"input_{name}": getattr(inputs, name) for name in ("shapes", "dtype", "mean", "std")}
    for option, value in given.items():
        if value is not None:
            found, expected = "given for a QuantizedModel", "the model and a target"
            raise ConfigError(f"option '{option}'", found, expected, "pass it to quantize")


def _check_threads(num_threads: Any) -> None:
    if num_threads is not None and (
        not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1
    ):
        raise ConfigError(
            "option 'num_threads'", repr(num_threads), "a positive integer or None", "leave it out to use all cores"
        )


def is_quantized(mod: tvm.IRModule) -> bool:
    """Whether a network came quantised: it rounds data, or multiplies integers with integers."""
    flow = Dataflow(mod)
    calls = (binding.value for binding in flow.bindings)
    return any(op_name(call) == "quantize" or multiplies_integers(flow, call) for call in calls)


def _reasons(quantized: QuantizedModel) -> dict[str, str]:
    """layer -> why it is not in INT8."""
    if quantized.config is None:
        return {"*": "compiled with quantization=None"}
    if quantized.table is None:
        return {"*": "the QDQ model leaves it in float", **float_reasons(pipeline.integers()(quantized.mod))}
    plan = plan_quantization(Dataflow(quantized.float_mod), quantized.config)
    reasons = {}
    for unit in plan.units:
        if unit.layer in quantized.config.float_layers:
            reasons[unit.layer] = "left in FP32 for accuracy"
        elif unit.reason:
            reasons[unit.layer] = unit.reason
        elif unit.kind == "carry" and unit.output not in plan.quantized:
            reasons[unit.layer] = "only float operators or the model's outputs read it"
    return reasons


__all__ = ["calibrate", "compile", "load", "quantize"]

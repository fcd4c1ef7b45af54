"""The public functions: compile, calibrate, load."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from tvm_int8.passes.batch_norm_outputs import batch_norm_outputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import dtype_of, op_name, shape_of
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibrate import collect
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.data import CalibrationBatches, InputSpec
from tvm_int8.quantization.data_free import (
    FIRST_BATCH_NORMS,
    STANDARDISED,
    fit_input_values,
    synthetic_batches,
    warn_data_free,
)
from tvm_int8.quantization.float_network import FloatNetwork
from tvm_int8.quantization.layer_sqnr import layer_sqnr
from tvm_int8.runtime import CompiledModule, load
from tvm_int8.target import missing_features, parse_target
from tvm_int8.tuning.lookup import SHIPPED, lookup

DEFAULT = QuantizationConfig()
SYNTHETIC_BATCHES = 8


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
    model : path, bytes, onnx.ModelProto, tvm.IRModule or torch.export.ExportedProgram
        The network; a QDQ model brings its own scales.
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
    config = _config(quantization)
    _check_threads(num_threads)
    resolved = parse_target(target)
    if num_threads is not None:
        resolved = replace(resolved, cpu=replace(resolved.cpu, threads=num_threads))
    choose = lookup(tuning_logs, resolved)
    imported = _load(model, input_shapes, input_dtype, input_mean, input_std)
    mod = pipeline.canonical_float()(imported)
    prepared = mod
    notes: dict[str, Any] = {}
    if input_dtype is not None:
        given = {"input_mean": input_mean, "input_std": input_std}
        notes |= {name: np.ravel(values).tolist() for name, values in given.items() if values is not None}
    reference: tuple[Any, Any] | None = None
    if config is not None and _is_quantized(mod):
        notes["ranges"] = "the model's own QDQ scales"
        if calibration is not None:
            warnings.warn(
                "the model is quantised already (QDQ): its own scales are used, calibration is ignored", stacklevel=2
            )
    elif config is not None:
        batch_norms = batch_norm_outputs(imported, mod) if calibration is None else {}
        table, reference = _ranges(mod, calibration, config, progress, batch_norms)
        prepared = pipeline.quantize(table, config)(mod)
        notes["ranges"] = "calibration" if calibration is not None else "data-free"
    executable, rows, planned = lower_and_build(prepared, resolved.tvm_target, resolved.cpu, choose)
    memory = memory_of(planned, resolved.cpu.threads)

    def metadata(sqnr=None):
        return describe(mod, rows, resolved, num_threads, _reasons(mod, config), sqnr, notes, memory)

    module = CompiledModule(executable, metadata())
    if reference is None or missing_features(resolved.features):
        return module
    return CompiledModule(executable, metadata(layer_sqnr(module, rows, *reference)))


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
    chosen = _config(config) or DEFAULT
    if method is not None:
        chosen = replace(chosen, method=method)
    mod = pipeline.canonical_float()(_load(model, input_shapes, input_dtype, input_mean, input_std))
    if _is_quantized(mod):
        raise CalibrationError(
            "model", "a QDQ model", "a float model", "its scales are in it already: compile it as it is"
        )
    plan = plan_quantization(Dataflow(mod), chosen)
    points = [var.name for var in plan.points()]
    batches = CalibrationBatches(data, _input_specs(mod))
    return _collect(_LazyNetwork(mod, points), batches, plan, chosen, progress, keep_histograms)


def _config(quantization: Any) -> QuantizationConfig | None:
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


def _load(model: Any, input_shapes, input_dtype: str | None, mean, std) -> tvm.IRModule:
    """The imported module, its inputs as wanted."""
    if input_dtype not in (None, "uint8"):
        expected = "'uint8', or None for the model's own"
        raise ConfigError("option 'input_dtype'", repr(input_dtype), expected, "pass one of these")
    if input_dtype is None:
        for option, given in (("input_mean", mean), ("input_std", std)):
            if given is not None:
                action = "pass both, or normalise the inputs yourself"
                raise ConfigError(f"option '{option}'", "given alone", "it together with input_dtype='uint8'", action)
        return load_model(model, input_shapes)
    return pipeline.byte_inputs(mean, std)(load_model(model, input_shapes))


def _check_threads(num_threads: Any) -> None:
    if num_threads is not None and (
        not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1
    ):
        raise ConfigError(
            "option 'num_threads'", repr(num_threads), "a positive integer or None", "leave it out to use all cores"
        )


def _is_quantized(mod: tvm.IRModule) -> bool:
    return any(op_name(binding.value) == "quantize" for binding in Dataflow(mod).bindings)


def _input_specs(mod: tvm.IRModule) -> list[InputSpec]:
    function = mod["main"]
    names = [str(name) for name in function.attrs["input_names"]]
    return [
        InputSpec(name, shape_of(param), dtype_of(param)) for name, param in zip(names, function.params, strict=True)
    ]


class _LazyNetwork:
    """Compiles the float network when the first batch arrives, so that bad data is reported at once."""

    def __init__(self, mod: tvm.IRModule, names):
        self.mod, self.names = mod, names
        self.network: FloatNetwork | None = None

    def __call__(self, batch):
        if self.network is None:
            self.network = FloatNetwork(self.mod, self.names)
        return self.network(batch)


class _KeepFirst:
    """Passes batches on and remembers the first one, for the report's SQNR."""

    def __init__(self, batches):
        self.batches, self.first = batches, None

    def __length_hint__(self) -> int:
        return operator.length_hint(self.batches, 0)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self.batches:
            if self.first is None:
                self.first = {name: np.array(array) for name, array in batch.items()}
            yield batch


def _ranges(mod: tvm.IRModule, calibration: Any, config: QuantizationConfig, progress: bool, batch_norms: dict):
    """(table, (float network, one batch) for the SQNR); `batch_norms` is what is known without data."""
    plan = plan_quantization(Dataflow(mod), config)
    for pattern in config.unmatched_exclusions([(unit.layer, unit.op) for unit in plan.units]):
        warnings.warn(f"exclude entry {pattern!r} matches no layer of the model", stacklevel=4)
    points = [var.name for var in plan.points()]
    first = dict(list(batch_norms.items())[:FIRST_BATCH_NORMS])
    outputs = (unit.output.name for unit in plan.units if unit.group is not None)
    network, specs = _LazyNetwork(mod, list(dict.fromkeys([*points, *outputs, *first]))), _input_specs(mod)
    if _is_table(calibration):
        table = calibration if isinstance(calibration, CalibrationTable) else CalibrationTable.load(calibration)
        table.check_model([var.name for var in _all_vars(mod)], points)
        batch = next(synthetic_batches(specs, 1))
        return table, (network, _scaled_to(table, plan, batch, mod))
    if calibration is None:
        values = fit_input_values(network, specs, first)
        warn_data_free(values, stacklevel=4)
        batches = _KeepFirst(list(synthetic_batches(specs, SYNTHETIC_BATCHES, values or STANDARDISED)))
    else:
        batches = _KeepFirst(CalibrationBatches(calibration, specs))
    return _collect(network, batches, plan, config, progress), (network, batches.first)


def _collect(network, batches, plan, config: QuantizationConfig, progress: bool, keep_histograms: bool = False):
    """The table of a plan's points."""
    points = [var.name for var in plan.points()]
    layers = {unit.output.name: unit.layer for unit in plan.units}
    for pattern in config.unmatched_methods([(name, layers.get(name, "")) for name in points]):
        warnings.warn(f"methods entry {pattern!r} matches no quantised tensor, nor a layer of one", stacklevel=4)
    return collect(
        network,
        batches,
        points,
        config,
        progress=progress,
        keep_histograms=keep_histograms,
        channel_points=plan.channel_points(),
        layers=layers,
    )


def _is_table(calibration: Any) -> bool:
    path = isinstance(calibration, (str, os.PathLike)) and os.fspath(calibration).endswith(".json")
    return isinstance(calibration, CalibrationTable) or path


def _all_vars(mod: tvm.IRModule):
    flow = Dataflow(mod)
    return [*flow.params, *flow.producer]


def _scaled_to(table: CalibrationTable, plan, batch, mod: tvm.IRModule):
    """Synthetic inputs stretched over the calibrated range of each input."""
    names = {
        str(name): param.name for name, param in zip(mod["main"].attrs["input_names"], mod["main"].params, strict=True)
    }
    for name, array in batch.items():
        if names[name] in table:
            low, high = table[names[name]].low, table[names[name]].high
            spread = (array - array.min()) / max(float(array.max() - array.min()), 1e-12)
            batch[name] = (low + spread * (high - low)).astype(np.float32)
    return batch


def _reasons(mod: tvm.IRModule, config: QuantizationConfig | None) -> dict[str, str]:
    """layer -> why it is not in INT8."""
    if config is None:
        return {"*": "compiled with quantization=None"}
    if _is_quantized(mod):
        return {"*": "the QDQ model leaves it in float"}
    plan = plan_quantization(Dataflow(mod), config)
    reasons = {}
    for unit in plan.units:
        if unit.reason:
            reasons[unit.layer] = unit.reason
        elif unit.kind == "carry" and unit.output not in plan.quantized:
            reasons[unit.layer] = "only float operators or the model's outputs read it"
    return reasons


__all__ = ["calibrate", "compile", "load"]

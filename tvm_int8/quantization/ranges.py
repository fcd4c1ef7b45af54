"""The ranges a network is quantised with: from calibration data, from a table, or from made-up inputs."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import dtype_of, shape_of
from tvm_int8.passes.groups import CONVOLUTIONS
from tvm_int8.passes.quantization_plan import QuantizationPlan, plan_quantization
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
from tvm_int8.quantization.winograd_choice import tiled_reads

SYNTHETIC_BATCHES = 8
KEPT_BYTES = 256 << 20
"""Of calibration data that is looked at again, at most."""


@dataclass(frozen=True)
class Reference:
    """What the quantised network is compared with: the float network's tensors on the first batches of inputs.

    typical : whether the batches are what was calibrated on, not made up to fit a table
    """

    network: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    batches: Sequence[dict[str, np.ndarray]]
    typical: bool = True

    @property
    def batch(self) -> dict[str, np.ndarray]:
        """The first one."""
        return self.batches[0]


class LazyNetwork:
    """Compiles the float network when the first batch arrives, so that bad data is reported at once."""

    def __init__(self, mod: tvm.IRModule, names):
        self.mod, self.names = mod, names
        self.network: FloatNetwork | None = None

    def __call__(self, batch):
        """Run one batch, see `FloatNetwork`."""
        if self.network is None:
            self.network = FloatNetwork(self.mod, self.names)
        return self.network(batch)


class _KeepFirst:
    """Passes batches on and remembers the first ones, as many as `count` and `KEPT_BYTES` allow, but at least one."""

    def __init__(self, batches, count: int):
        self.batches, self.count = batches, count
        self.first: list[dict[str, np.ndarray]] = []

    def __length_hint__(self) -> int:
        return operator.length_hint(self.batches, 0)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self.batches:
            size = sum(array.nbytes for array in batch.values())
            if not self.first or (len(self.first) < self.count and (len(self.first) + 1) * size <= KEPT_BYTES):
                self.first.append({name: np.array(array) for name, array in batch.items()})
            yield batch


def input_specs(mod: tvm.IRModule) -> list[InputSpec]:
    """Name, shape and dtype of the network's inputs."""
    function = mod["main"]
    names = [str(name) for name in function.attrs["input_names"]]
    return [
        InputSpec(name, shape_of(param), dtype_of(param)) for name, param in zip(names, function.params, strict=True)
    ]


def find_ranges(
    mod: tvm.IRModule,
    calibration: Any,
    config: QuantizationConfig,
    progress: bool,
    batch_norms: Mapping,
    kept: int = 1,
) -> tuple[CalibrationTable, Reference]:
    """The table of a canonical float module, and what the report compares with.

    Parameters
    ----------
    mod : IRModule
        Canonical and float.
    calibration : iterable of inputs, array, CalibrationTable, path or None
        As for `tvm_int8.compile`.
    config : QuantizationConfig
    progress : bool
        Show a progress bar.
    batch_norms : mapping
        What `passes.batch_norm_outputs` knows without data.
    kept : int
        How many batches the reference is to have.
    """
    plan = plan_quantization(Dataflow(mod), config)
    for pattern in config.unmatched_exclusions([(unit.layer, unit.op) for unit in plan.units]):
        warnings.warn(f"exclude entry {pattern!r} matches no layer of the model", stacklevel=5)
    if config.bits is not None:
        layers = {unit.output.name: unit.layer for unit in plan.units}
        computing = [unit.layer for unit in plan.units if unit.op in CONVOLUTIONS]
        tensors = [(var.name, layers.get(var.name, "")) for var in plan.points()]
        for pattern in config.bits.unmatched(computing, tensors):
            warnings.warn(f"bits entry {pattern!r} matches no layer of the model", stacklevel=5)
    points = [var.name for var in plan.points()]
    first = dict(list(batch_norms.items())[:FIRST_BATCH_NORMS])
    outputs = (unit.output.name for unit in plan.units if unit.group is not None)
    read = (unit.group.anchor.value.args[0].name for unit in plan.units if unit.kind == "compute")
    network, specs = LazyNetwork(mod, list(dict.fromkeys([*points, *outputs, *read, *first]))), input_specs(mod)
    if _is_table(calibration):
        table = calibration if isinstance(calibration, CalibrationTable) else CalibrationTable.load(calibration)
        table.check_model([var.name for var in _all_vars(mod)], points)
        batch = next(synthetic_batches(specs, 1))
        return table, Reference(network, [_scaled_to(table, batch, mod)], typical=False)
    if calibration is None:
        values = fit_input_values(network, specs, first)
        warn_data_free(values, stacklevel=6)
        batches = _KeepFirst(list(synthetic_batches(specs, SYNTHETIC_BATCHES, values or STANDARDISED)), kept)
    else:
        batches = _KeepFirst(CalibrationBatches(calibration, specs), kept)
    keep = config.range_search or config.bits is not None  # few bits want narrower ranges
    tiled = {} if calibration is None else _tiled(plan, config)  # tails of made-up inputs tell nothing
    table = _collect(network, batches, plan, config, progress, 6, keep, tiled)
    return table, Reference(network, batches.first)


def observe_ranges(
    mod: tvm.IRModule, data: Any, config: QuantizationConfig, progress: bool, keep_histograms: bool
) -> CalibrationTable:
    """The table of a canonical float module on calibration data."""
    plan = plan_quantization(Dataflow(mod), config)
    tiled = _tiled(plan, config)
    network = LazyNetwork(mod, list(dict.fromkeys([*(var.name for var in plan.points()), *tiled])))
    batches = CalibrationBatches(data, input_specs(mod))
    return _collect(network, batches, plan, config, progress, 4, keep_histograms, tiled)


def _collect(
    network,
    batches,
    plan: QuantizationPlan,
    config: QuantizationConfig,
    progress: bool,
    stacklevel: int,
    keep_histograms: bool,
    tiled: Mapping[str, Sequence[tuple[int, int, int, int]]],
) -> CalibrationTable:
    """The table of a plan's points, and what is transformed."""
    points = [var.name for var in plan.points()]
    layers = {unit.output.name: unit.layer for unit in plan.units}
    for pattern in config.unmatched_methods([(name, layers.get(name, "")) for name in points]):
        message = f"methods entry {pattern!r} matches no quantised tensor, nor a layer of one"
        warnings.warn(message, stacklevel=stacklevel)
    return collect(
        network,
        batches,
        points,
        config,
        progress=progress,
        keep_histograms=keep_histograms,
        channel_points=plan.channel_points(),
        layers=layers,
        tiled=tiled,
    )


def _tiled(plan: QuantizationPlan, config: QuantizationConfig) -> dict[str, list[tuple[int, int, int, int]]]:
    """What convolutions in INT8 may transform, and their paddings."""
    if config.winograd == "off":
        return {}
    return tiled_reads(unit.group.anchor.value for unit in plan.units if unit.kind == "compute")


def _is_table(calibration: Any) -> bool:
    path = isinstance(calibration, (str, os.PathLike)) and os.fspath(calibration).endswith(".json")
    return isinstance(calibration, CalibrationTable) or path


def _all_vars(mod: tvm.IRModule):
    flow = Dataflow(mod)
    return [*flow.params, *flow.producer]


def _scaled_to(table: CalibrationTable, batch: dict[str, np.ndarray], mod: tvm.IRModule) -> dict[str, np.ndarray]:
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

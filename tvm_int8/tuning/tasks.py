"""From a network to its distinct workloads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import tvm

from tvm_int8 import pipeline
from tvm_int8.config import QuantizationConfig
from tvm_int8.kernel_op import is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.passes.order_winograd import can_be_tiled, winograd_spec
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.transformed_statistics import TILES
from tvm_int8.schedules.convolution_time import fastest
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.registry import applicable
from tvm_int8.specs import WinogradConv2d

from .workload import Workload


def workloads_of(mod: tvm.IRModule, cpu: Cpu, config: QuantizationConfig | None) -> Counter[Workload]:
    """Return a network's workloads, and how many of its layers have each; by tiles, too, where that may be faster.

    Parameters
    ----------
    mod : IRModule
        What the frontend delivers.
    cpu : Cpu
        With the number of threads.
    config : QuantizationConfig or None
        As for compiling. Workloads are shapes and dtypes, so ranges are made up here.
    """
    mod = pipeline.canonical_float()(mod)
    if config is not None and not any(op_name(binding.value) == "quantize" for binding in Dataflow(mod).bindings):
        points = plan_quantization(Dataflow(mod), config).points()
        table = CalibrationTable({var.name: TensorRange(-4.0, 4.0, config.method, 1) for var in points})
        mod = pipeline.quantize(table, config)(mod)
    tiles = config is None or config.winograd != "off"
    forms = [form for spec in _orders(mod) for form in (spec, *(_tiled(spec, cpu) if tiles else []))]
    return Counter(workload for spec in forms if (workload := _tunable(spec, cpu)))


def _orders(mod: tvm.IRModule) -> list[Any]:
    placed = pipeline.place()(mod)
    return [spec_of(binding.value) for binding in Dataflow(placed).bindings if is_kernel(binding.value)]


def _tiled(spec: Any, cpu: Cpu) -> list[WinogradConv2d]:
    """The ways to compute a convolution by tiles that may be faster; which are accurate enough, only data can tell."""
    if not can_be_tiled(spec):
        return []
    forms = [winograd_spec(spec, tile) for tile in TILES]
    return [form for form in forms if fastest([spec, form], cpu)]


def _tunable(spec: Any, cpu: Cpu) -> Workload | None:
    return Workload.of(spec, cpu.threads) if any(rule.template for rule in applicable(spec, cpu)) else None

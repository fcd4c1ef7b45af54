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
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.registry import applicable

from .workload import Workload


def workloads_of(mod: tvm.IRModule, cpu: Cpu, config: QuantizationConfig | None) -> Counter[Workload]:
    """Return a network's workloads, and how many of its layers have each.

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
    return Counter(workload for spec in _orders(mod) if (workload := _tunable(spec, cpu)))


def _orders(mod: tvm.IRModule) -> list[Any]:
    placed = pipeline.place()(mod)
    return [spec_of(binding.value) for binding in Dataflow(placed).bindings if is_kernel(binding.value)]


def _tunable(spec: Any, cpu: Cpu) -> Workload | None:
    return Workload.of(spec, cpu.threads) if any(rule.template for rule in applicable(spec, cpu)) else None

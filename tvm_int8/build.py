"""From a lowered Relax module to an executable and the metadata that travels with it."""

from __future__ import annotations

import json

import tvm
from tvm import relax

from tvm_int8 import pipeline
from tvm_int8.code_generation import TENSOR_IR
from tvm_int8.errors import TvmInt8Error
from tvm_int8.packed_weights import PackedWeight
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.order_winograd import NOTES
from tvm_int8.passes.schedule_kernels import PACKED_WEIGHTS, ROWS, Choose
from tvm_int8.schedules.cpu import Cpu


def lower_and_build(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    cpu: Cpu,
    choose: Choose = lambda spec: None,
    tiles: tvm.transform.Pass | None = None,
):
    """Lower a canonical module and compile it; parameters as of `pipeline.lower`.

    Returns
    -------
    executable : relax.VMExecutable
    rows : list of dict
        One per kernel call, in the order of execution (see `passes.schedule_kernels`), with its `PackedWeight`.
    planned : IRModule
        What the code generator was given, memory planned, for inspection.
    """
    lowered = _lower(mod, cpu, choose, tiles)
    rows = kernel_rows(lowered)
    executable, planned = generate_code(lowered, target)
    return executable, rows, planned


def generate_code(lowered: tvm.IRModule, target: tvm.target.Target):
    """Compile a module of scheduled functions; returns (executable, the module with its memory planned)."""
    try:
        planned = pipeline.to_executable()(lowered)
        return compile_planned(planned, target), planned
    except Exception as error:  # LLVM and the Relax code generator raise whatever they like
        raise _failure("code generation", error) from error


def _lower(mod: tvm.IRModule, cpu: Cpu, choose: Choose, tiles: tvm.transform.Pass | None) -> tvm.IRModule:
    try:
        return pipeline.lower(cpu, choose, tiles)(mod)
    except TvmInt8Error:
        raise
    except Exception as error:  # and so do TVM's own lowerings of operators, of types that they do not know, say
        raise _failure("lowering", error) from error


def _failure(stage: str, error: Exception) -> TvmInt8Error:
    lines = str(error).strip().splitlines() or [""]
    found = f"{type(error).__name__}: {lines[-1][:300]}"
    action = "report this with the model; quantization=None or another target may work meanwhile"
    return TvmInt8Error(stage, found, "code that compiles", action)


def compile_planned(planned: tvm.IRModule, target: tvm.target.Target):
    """The executable of a module that `pipeline.to_executable` delivered."""
    nothing_left = tvm.transform.Sequential([])
    return tvm.compile(planned, target, relax_pipeline=nothing_left, tir_pipeline=TENSOR_IR)


def kernel_rows(lowered: tvm.IRModule) -> list[dict]:
    """What each call of a scheduled function is, in order; islands included."""
    known = json.loads(lowered.attrs[ROWS]) if lowered.attrs and ROWS in lowered.attrs else {}
    packed = dict(lowered.attrs[PACKED_WEIGHTS]) if lowered.attrs and PACKED_WEIGHTS in lowered.attrs else {}
    names = dict(lowered["main"].attrs["layer_names"]) if "layer_names" in lowered["main"].attrs else {}
    notes = dict(lowered.attrs[NOTES]) if lowered.attrs and NOTES in lowered.attrs else {}
    rows = []
    for binding in Dataflow(lowered).bindings:
        call = binding.value
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") != "relax.call_tir":
            continue
        function = call.args[0].name_hint
        row = known.get(binding.var.name)
        if row is None or row["function"] != function:
            row = _island_row(binding, function, str(names.get(binding.var.name, binding.var.name)), lowered)
        note = str(notes.get(row["layer"], "")) if row["macs"] else ""
        stored = packed.get(binding.var.name)
        weight = None if stored is None else PackedWeight.from_bytes(stored.numpy().tobytes())
        rows.append({**row, "note": note, "packed": weight})
    return rows


def _island_row(binding, function: str, layer: str, lowered: tvm.IRModule) -> dict:
    attrs = lowered[function].attrs
    unscheduled = str(attrs["tvm_int8.unscheduled"]) if attrs and "tvm_int8.unscheduled" in attrs else ""
    shape = shape_of(binding.var) if isinstance(binding.var.ty, relax.TensorType) else ()
    return {
        "function": function,
        "layer": layer,
        "op": function,
        "kernel": function,
        "tensor": binding.var.name,
        "precision": "float32",
        "origin": "island" + (f" (unscheduled: {unscheduled})" if unscheduled else ""),
        "macs": 0,
        "bytes": 0,
        "result": {"shape": list(shape), "dtype": "", "block": 0},
        "weight_bits": None,
        "stored": None,
    }

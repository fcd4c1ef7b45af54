"""A candidate: a workload, a template and its knobs, in the terms of MetaSchedule, and as code that can be timed.

MetaSchedule searches over schedules. A schedule here is a placeholder whose only block is annotated with the candidate
as JSON; `build` makes the kernel that it stands for. What is built is a *sweep*: a function of a Relax virtual machine
that calls the kernel once for each of several copies of its weights, one after the other,

    main(data, weight0, bias0, ..., weight1, bias1, ..., out)

so that timing it finds weights where a network finds them, behind the caches that other layers have driven them from,
and data where the layer before has just put them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, s_tir
from tvm.script import tirx as T

from tvm_int8 import winograd
from tvm_int8.build import compile_planned
from tvm_int8.quantization.winograd_quantizer import quantize_transformed
from tvm_int8.reference import evaluate
from tvm_int8.schedules import amx
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.knobs import Choice, Knobs
from tvm_int8.schedules.registry import deliver
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Conv2d, Kernel, Tensor, WinogradConv2d

from .record import Record
from .workload import Workload

BLOCK = "kernel"
_ANNOTATION = "tvm_int8.candidate"
MOST_COPIES = 32
_FLUSHED = 2  # what a sweep touches is this times as large as L2


@dataclass(frozen=True)
class Candidate:
    """One way to build a workload's kernel."""

    workload: Workload
    template: str
    version: int
    knobs: Knobs

    @staticmethod
    def of(record: Record) -> Candidate:
        """Return what a record was measured of."""
        return Candidate(record.workload, record.template, record.version, record.knobs)

    @property
    def point(self) -> tuple[str, str]:
        """Which candidate of its workload this is."""
        return self.template, json.dumps(self.knobs, sort_keys=True)

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        fields = {"workload": self.workload.to_dict(), "template": self.template, "version": self.version}
        return json.dumps({**fields, "knobs": self.knobs})

    @staticmethod
    def from_json(text: str) -> Candidate:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return Candidate(**{**fields, "workload": Workload.from_dict(fields["workload"])})

    def kernel(self, constants: Constants, cpu: Cpu) -> Kernel:
        """Deliver the kernel."""
        return deliver(self.workload.spec(), constants, cpu, Choice(self.template, self.knobs))


@T.prim_func(s_tir=True)
def _placeholder(out: T.Buffer((1,), "float32")):  # type: ignore[valid-type]
    with T.sblock(BLOCK):
        out[0] = T.float32(0)


def placeholder(workload: Workload) -> tvm.IRModule:
    """Return what MetaSchedule takes for the workload: a module that differs from those of other workloads."""
    func = _placeholder.with_attr("global_symbol", "main").with_attr(
        "tvm_int8.workload", json.dumps(workload.to_dict())
    )
    return tvm.IRModule({"main": func})


def schedule_of(candidate: Candidate, module: tvm.IRModule) -> s_tir.Schedule:
    """Return a schedule of the workload's `placeholder` that stands for the candidate."""
    schedule = s_tir.Schedule(module)
    schedule.annotate(schedule.get_sblock(BLOCK), _ANNOTATION, candidate.to_json())
    return schedule


def candidate_of(module: tvm.IRModule) -> Candidate:
    """Return the candidate that a scheduled module stands for."""
    schedule = s_tir.Schedule(module)
    block = schedule.get(schedule.get_sblock(BLOCK))
    return Candidate.from_json(str(block.annotations[_ANNOTATION]))


@dataclass(frozen=True)
class Sample:
    """Made-up operands of a workload, the same wherever they are made, and what its kernel has to deliver.

    data, out : as they lie in memory
    """

    spec: Conv2d
    constants: Constants
    data: np.ndarray
    out: np.ndarray

    @staticmethod
    def of(workload: Workload, with_result: bool = True) -> Sample:
        """Draw the operands and, which can take a second, compute the result (else it is zeros)."""
        spec, rng = workload.spec(), np.random.default_rng(0)
        integer, channels = workload.dtypes[0] == "uint8", workload.out[1]
        if integer:
            data = rng.integers(0, 256, workload.data, np.uint8)
            weight = rng.integers(-127, 128, workload.weight, np.int8)
            products = int(np.prod(weight.shape[1:])) or 1
            scale = np.full(channels, 127 / (60 * 128 * products**0.5), np.float32)
            constants = Constants(weight, rng.integers(-5000, 5000, channels).astype(np.int32), (scale,))
        else:  # small whole numbers: their sums are exact in any order
            data = rng.integers(-4, 5, workload.data).astype(np.float32)
            weight = rng.integers(-4, 5, workload.weight).astype(np.float32)
            constants = Constants(weight, rng.integers(-4, 5, channels).astype(np.float32))
        if isinstance(spec, WinogradConv2d):
            constants = _in_tiles(spec, constants)
        if with_result:
            out = evaluate(spec, [data], constants)
        else:
            out = np.zeros(spec.result.shape, spec.result.dtype)
        return Sample(spec, constants, _in_memory(data, spec.inputs[0]), _in_memory(out, spec.result))


def _in_tiles(spec: WinogradConv2d, constants: Constants) -> Constants:
    """The constants of a convolution as its Winograd form has them."""
    assert constants.weight is not None and constants.bias is not None
    weight, bias = constants.weight.astype(np.float64), constants.bias.astype(np.float32)
    if constants.weight.dtype == np.float32:
        return replace(constants, weight=winograd.transformed_weight(weight, spec.tile).astype(np.float32))
    assert spec.pad_value is not None
    ends = -spec.pad_value, 255 - spec.pad_value
    ranges = np.repeat(winograd.bounds(spec.tile, *ends)[:, None] / 2, spec.inputs[0].shape[1], 1)
    q = quantize_transformed(weight, spec.tile, spec.wide, ranges, ends)
    return Constants(channels=constants.channels, bias=bias, **q.constants())


def _in_memory(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """NCHW -> NCHW{block}c, zeros in what the last block has too many."""
    n, c, h, w = array.shape
    padded = np.pad(array, ((0, 0), (0, -c % tensor.block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, tensor.block, h, w).transpose(0, 1, 3, 4, 2))


def meant_channels(out: np.ndarray, channels: int) -> np.ndarray:
    """Return the part of a packed result that the layer's channels are in."""
    n, blocks, h, w, block = out.shape
    return out.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)[:, :channels]


def copies_for(kernel: Kernel, sample: Sample, l2_bytes: int) -> int:
    """Return how many copies of a kernel's constants it takes that calls with all others drive one out of L2."""
    size = sample.data.nbytes + sample.out.nbytes + sum(array.nbytes for array in kernel.constants)
    return max(1, min(MOST_COPIES, -(-_FLUSHED * l2_bytes // size)))


def build_sweep(kernel: Kernel, sample: Sample, copies: int, target: tvm.target.Target) -> Any:
    """Compile a kernel's sweep over `copies` copies of its constants."""
    builder = relax.BlockBuilder()
    func = kernel.func.with_attr("global_symbol", BLOCK)
    if func.attrs and amx.NEEDS_PERMISSION in func.attrs:
        func = amx.with_permission(func)
    variable = builder.add_func(func, BLOCK)
    data, out = _parameter("data", sample.data), _parameter("out", sample.out)
    constants = [[_parameter(f"c{k}_{i}", c) for i, c in enumerate(kernel.constants)] for k in range(copies)]
    with builder.function("main", [data, *(c for copy in constants for c in copy), out]):
        for copy in constants:
            builder.emit(relax.Call(variable, [data, *copy, out], ty_args=[relax.TupleType([])]))
        builder.emit_func_output(out)
    passes = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    return compile_planned(passes(builder.get()), target)


def _parameter(name: str, array: np.ndarray) -> relax.Var:
    return relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))

"""How much memory a compiled network needs, read from the module whose memory is planned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import GenericConst

from tvm_int8.metadata import Memory
from tvm_int8.packed_weights import PackedWeight
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.plan_memory import MEMORY
from tvm_int8.weight_archive import saved_bytes

STACK_BYTES = 1024
"""Buffers up to this size are on the stack; larger ones come from the runtime's pool of workspaces, one per thread."""


def memory_of(planned: tvm.IRModule, threads: int, packed: Sequence[PackedWeight] = ()) -> Memory:
    """What a module needs on so many threads, after `pipeline.to_executable`, and what its file holds."""
    functions = [func for func in planned.functions.values() if isinstance(func, tirx.PrimFunc)]
    scratch = max((scratch_bytes(func, threads) for func in functions), default=0)
    activations, constants = sum(int(n) for n in planned["main"].attrs[MEMORY]), _constant_bytes(planned)
    return Memory(activations, scratch, constants, constants - saved_bytes(packed) if packed else None)


def scratch_bytes(func: tirx.PrimFunc, threads: int) -> int:
    """Bytes of a function's buffers that are not on the stack; those in parallel loops once per thread."""
    per_call = _buffer_bytes(func.body)
    per_thread: dict[tirx.Var, int] = {}

    def loop(node: tirx.For) -> None:
        if node.kind == tirx.ForKind.PARALLEL:
            per_thread.update(_buffer_bytes(node.body))

    tvm_ffi.structural_walk(func.body, (tirx.For, loop))
    return sum(per_call.values()) + (threads - 1) * sum(per_thread.values())


def _buffer_bytes(body: tirx.Stmt) -> dict[tirx.Var, int]:
    found: dict[tirx.Var, int] = {}

    def allocation(node: tirx.AllocBuffer) -> None:
        shape, dtype = node.buffer.ty.shape, node.buffer.ty.dtype
        size = math.prod(int(dim) for dim in shape) * np.dtype(str(dtype)).itemsize
        if size > STACK_BYTES:
            found[node.buffer] = size

    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, allocation))
    return found


def _constant_bytes(planned: tvm.IRModule) -> int:
    calls = (binding.value for binding in Dataflow(planned).bindings if isinstance(binding.value, relax.Call))
    constants = {arg: None for call in calls for arg in call.args if isinstance(arg, GenericConst)}
    tensors = (constant.ty for constant in constants if isinstance(constant.ty, relax.TensorType))
    return sum(math.prod(int(dim) for dim in ty.shape) * np.dtype(str(ty.dtype)).itemsize for ty in tensors)

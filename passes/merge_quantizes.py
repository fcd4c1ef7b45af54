"""MergeQuantizes: a tensor is stored as integers once, however often it is written down.

    q0 = quantize(x, s, z)                q0 = quantize(x, s, z)
    q1 = quantize(x, s, z)      ->        everything that read q1 reads q0

Quantisers that give every reader a pair of its own (ONNX Runtime's `DedicatedQDQPair`) leave these behind.

Requires   constant scales and zero points.
Ensures    no two quantizes of one tensor with the same parameters: a kernel can store the integers it computes.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Rebuilder, rebuild
from .expressions import Expr, const_value, dtype_of, op_name


@tvm.transform.module_pass(opt_level=0, name="MergeQuantizes")
class MergeQuantizes:
    """Let equal quantizes of one tensor be one."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module without repeated quantizes."""
        first: dict[tuple, relax.Var] = {}

        def rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
            key = _key(value)
            if key in first:
                return new.translate(first[key])
            if key is not None:
                first[key] = binding.var
            return None

        return rebuild(mod, rewrite)


def _key(call: Expr) -> tuple | None:
    """What two quantizes must have in common; None for anything else."""
    if op_name(call) != "quantize":
        return None
    parameters = [const_value(argument) for argument in call.args[1:]]
    if any(array is None for array in parameters):
        return None
    numbers = tuple((array.shape, array.tobytes()) for array in parameters)
    return call.args[0], dtype_of(call), int(call.attrs.axis), numbers

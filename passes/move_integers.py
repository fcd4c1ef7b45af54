"""MoveIntegers: what only moves data moves the integers.

    quantize(permute_dims(dequantize(q, s, z)), s, z)   ->   permute_dims(q)

Requires   the same scale and zero point on both sides.
Ensures    reshape, permute_dims and slices between quantised tensors work on 8-bit data.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, dtype_of, op_name
from .quantization_parameters import quantization_of

MOVERS = ("reshape", "permute_dims", "strided_slice", "take")


@tvm.transform.module_pass(opt_level=0, name="MoveIntegers")
class MoveIntegers:
    """Commute dequantize with data movement."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with integers moved."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            source = _integer_source(binding.value, flow)
            if source is None:
                return None
            mover = flow.value(binding.value.args[0])
            return relax.Call(mover.op, [new.translate(source), *mover.args[1:]], mover.attrs, mover.ty_args)

        return rebuild(mod, rewrite)


def _integer_source(call: Expr, flow: Dataflow) -> Expr | None:
    if op_name(call) != "quantize":
        return None
    mover = flow.value(call.args[0])
    if op_name(mover) not in MOVERS:
        return None
    dequantize = flow.value(mover.args[0])
    if op_name(dequantize) != "dequantize" or dtype_of(dequantize.args[0]) != dtype_of(call):
        return None
    found = quantization_of(call)
    return dequantize.args[0] if found is not None and found == quantization_of(dequantize) else None

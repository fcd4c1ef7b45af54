"""MoveIntegers: what only moves data moves the integers.

    quantize(permute_dims(dequantize(q, s, z)), s, z)   ->   permute_dims(q)
    quantize(dequantize(q, s, z), s, z)                 ->   q

Requires   the same scale and zero point on both sides.
Ensures    reshape, permute_dims and slices between quantised tensors work on 8-bit data; so do paddings with copies,
           and concatenations that no kernel knows (along another axis than the channels).
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, dtype_of, op_name
from .groups import is_anchor
from .quantization_parameters import quantization_of

MOVERS = ("reshape", "permute_dims", "strided_slice", "take")


@tvm.transform.module_pass(opt_level=0, name="MoveIntegers")
class MoveIntegers:
    """Commute dequantize with data movement."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with integers moved."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            call = binding.value
            if op_name(call) != "quantize" or quantization_of(call) is None:
                return None
            source = _integers(call.args[0], call, flow)
            if source is not None:
                return new.translate(source)
            mover = flow.producer.get(call.args[0])
            moved = None if mover is None else _moved_integers(mover, call, flow)
            if moved is None:
                return None
            _, *rest = mover.value.args
            return relax.Call(mover.value.op, [new.translate(moved), *rest], mover.value.attrs, mover.value.ty_args)

        return rebuild(mod, rewrite)


def _integers(real: Expr, quantize: relax.Call, flow: Dataflow) -> Expr | None:
    """The integers that `real` stands for, if `quantize` would give the same ones."""
    value = flow.value(real)
    if op_name(value) != "dequantize" or dtype_of(value.args[0]) != dtype_of(quantize):
        return None
    return value.args[0] if quantization_of(value) == quantization_of(quantize) else None


def _moved_integers(mover: relax.VarBinding, quantize: relax.Call, flow: Dataflow) -> Expr | None:
    """What the mover in front of `quantize` reads, as integers."""
    data = mover.value.args[0] if isinstance(mover.value, relax.Call) and mover.value.args else None
    mirrors = op_name(mover.value) == "nn.pad" and str(mover.value.attrs.pad_mode) != "constant"
    if op_name(mover.value) in MOVERS or mirrors:
        return _integers(data, quantize, flow)
    if op_name(mover.value) == "concat" and not is_anchor(mover, flow):
        fields = [_integers(field, quantize, flow) for field in data.fields]
        return relax.Tuple(fields) if all(field is not None for field in fields) else None
    return None

"""MoveIntegers: what only moves data moves the integers.

    quantize(permute_dims(dequantize(q, s, z)), s, z)   ->   permute_dims(q)
    quantize(dequantize(q, s, z), s, z)                 ->   q

Requires   the same scale and zero point on both sides: the tensor's, or each channel's where channels are taken.
Ensures    reshape, permute_dims and slices between quantised tensors work on 8-bit data; so do paddings with copies,
           and concatenations that no kernel knows (along another axis than the channels).
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, const_value, dtype_of, op_name
from .groups import is_anchor
from .quantization_parameters import channel_quantization_of, quantization_of

MOVERS = ("reshape", "permute_dims", "strided_slice", "take")


@tvm.transform.module_pass(opt_level=0, name="MoveIntegers")
class MoveIntegers:
    """Commute dequantize with data movement."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with integers moved."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            call = binding.value
            if op_name(call) != "quantize":
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
    same = quantization_of(value)
    return value.args[0] if same is not None and same == quantization_of(quantize) else None


def _taken_integers(take: relax.Call, quantize: relax.Call, flow: Dataflow) -> Expr | None:
    """The integers of which `take` selects channels, if each keeps the scale and zero point it had."""
    source, order = flow.value(take.args[0]), const_value(take.args[1])
    if op_name(source) != "dequantize" or dtype_of(source.args[0]) != dtype_of(quantize):
        return None
    old, new = channel_quantization_of(source), channel_quantization_of(quantize)
    if old is None or new is None or order is None or order.ndim != 1 or int(take.attrs.axis) != 1:
        return None
    return source.args[0] if all(np.array_equal(a[order], b) for a, b in zip(old, new, strict=True)) else None


def _moved_integers(mover: relax.VarBinding, quantize: relax.Call, flow: Dataflow) -> Expr | None:
    """What the mover in front of `quantize` reads, as integers."""
    data = mover.value.args[0] if isinstance(mover.value, relax.Call) and mover.value.args else None
    mirrors = op_name(mover.value) == "nn.pad" and str(mover.value.attrs.pad_mode) != "constant"
    if op_name(mover.value) in MOVERS or mirrors:
        integers = _integers(data, quantize, flow)
        if integers is None and op_name(mover.value) == "take":
            return _taken_integers(mover.value, quantize, flow)
        return integers
    if op_name(mover.value) == "concat" and not is_anchor(mover, flow):
        fields = [_integers(field, quantize, flow) for field in data.fields]
        return relax.Tuple(fields) if all(field is not None for field in fields) else None
    return None

"""QuantizeEarly: a tensor that is moved and then quantised is quantised first.

    quantize(max_pool2d(x), s, z)    ->    quantize(max_pool2d(dequantize(quantize(x, s, z), s, z)), s, z)
    quantize(concat(x, y), s, z)     ->    the same for each part

Rounding is monotonic, and these operators only select among elements (and zeros), so the result is the same; but the
kernel that computes x stores a quarter of the bytes, and the movement is one of integers. Models in
which only the convolutions' inputs are quantised (ONNX Runtime with `op_types_to_quantize=["Conv"]`) are full of these.

Requires   constant scales and zero points, one per tensor.
Ensures    no float tensor is moved on its way to a quantize, unless something else reads it, too.
Not done   where x is a dequantize and a kernel rescales while it moves; where x is an input of the model.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, dtype_of, op_name, vars_in
from .groups import is_anchor, slice_ranges
from .quantization_parameters import INTEGERS, quantization_of
from .quantized_values import through_views
from .selections import selects


@tvm.transform.module_pass(opt_level=0, name="QuantizeEarly")
class QuantizeEarly:
    """Insert a quantize and dequantize in front of what only moves data towards a quantize."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with tensors quantised as early as they can be."""
        flow = Dataflow(mod)
        stored = _stored_as(flow)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            found = [var for var in vars_in(binding.value) if var in stored]
            for var in found:
                scale, zero_point = stored[var].args[1:]
                quantized = relax.op.quantize(new.translate(var), scale, zero_point, -1, dtype_of(stored[var]))
                integers = new.emit(quantized, f"{var.name}_quantized")
                new.redirect(var, new.emit(relax.op.dequantize(integers, scale, zero_point, -1), f"{var.name}_real"))
            return new.translate(binding.value) if found else None

        return rebuild(mod, rewrite)


def _stored_as(flow: Dataflow) -> dict[Var, relax.Call]:
    """Float variables that nothing but a mover reads -> the quantize at the end of the movement."""
    ends: dict[Var, relax.Call] = {}
    stored: dict[Var, relax.Call] = {}
    for binding in reversed(flow.bindings):
        user = flow.only_consumer(binding.var)
        if user is None:
            continue
        if _quantizes(user.value):
            ends[binding.var] = user.value
        elif user.var in ends and _moves(user.value, flow):
            ends[binding.var] = ends[user.var]
            if not _is_stored(binding.var, user, ends[user.var], flow):
                stored[binding.var] = ends[user.var]
    return stored


def _is_stored(var: Var, mover: relax.VarBinding, end: relax.Call, flow: Dataflow) -> bool:
    """Whether a mover reads integers already: those the end wants, or any if its kernel rescales."""
    source = flow.value(through_views(flow, var))
    if op_name(source) != "dequantize":
        return False
    return _rescales(mover, flow) or quantization_of(source) == quantization_of(end)


def _rescales(mover: relax.VarBinding, flow: Dataflow) -> bool:
    """Whether the mover's kernel stores another scale than it reads: windows and paddings copy bytes."""
    if not is_anchor(mover, flow) or op_name(mover.value) == "nn.pad":
        return False
    return op_name(mover.value) != "strided_slice" or set(slice_ranges(mover.value)) <= {1}


def _quantizes(call: Expr) -> bool:
    return op_name(call) == "quantize" and dtype_of(call) in INTEGERS and quantization_of(call) is not None


def _moves(call: Expr, flow: Dataflow) -> bool:
    """Whether a call selects among operands that can all be integers."""
    if op_name(call) == "concat":
        return all(_can_be_stored(part, flow) for part in call.args[0].fields)
    return selects(call)


def _can_be_stored(part: Expr, flow: Dataflow) -> bool:
    if op_name(flow.value(through_views(flow, part))) == "dequantize":
        return True
    return part in flow.producer and flow.only_consumer(part) is not None

"""QDQ models with int8 activations -> the same model with uint8 activations.

Before::

    q: int8 = R.quantize(x, s, const(z, "int8"))        # every use of q is a dequantize
    y = R.dequantize(q, s2, const(z2, "int8"))

After::

    q: uint8 = R.quantize(x, s, const(z + 128, "uint8"))
    y = R.dequantize(q, s2, const(z2 + 128, "uint8"))

``saturate_int8(round(x / s) + z) + 128 == saturate_uint8(round(x / s) + z + 128)``, so the result is the same bit for
bit.
Not touched: quantised graph inputs and outputs (their dtype is the model's interface) and values other operators read.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .emitter import dtype_of, is_constant, is_relax_call, substitute, used_vars


def make_activations_unsigned(mod: tvm.IRModule) -> tvm.IRModule:
    """Turn int8 activations of the canonical module's ``main`` into uint8.

    Parameters
    ----------
    mod : tvm.IRModule
        A canonical module.
    """
    function = mod["main"]
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    signed = _shiftable(bindings)
    if not signed:
        return mod
    replaced: dict[relax.Var, relax.Var] = {}
    infer, rewritten = relax.BlockBuilder(), []
    for binding in bindings:
        value = binding.value
        if binding.var in signed or (_is(value, "dequantize") and value.args[0] in signed):
            value = _shifted(value)
        value = infer.normalize(substitute(value, replaced))
        var = binding.var
        if binding.var in signed:
            var = replaced[binding.var] = relax.DataflowVar(binding.var.name, value.ty)
        rewritten.append(relax.VarBinding(var, value))
    body = relax.SeqExpr([relax.DataflowBlock(rewritten)], function.body.body)
    changed = relax.Function(function.params, body, function.ret_ty, is_pure=True).with_attrs(function.attrs)
    return relax.transform.Normalize()(tvm.IRModule({"main": changed}))


def _is(value, name: str) -> bool:
    return is_relax_call(value) and value.op.name == f"relax.{name}"


def _shiftable(bindings) -> set[relax.Var]:
    """Variables bound to an int8 quantize with constant zero point that only dequantize reads."""
    candidates = {
        binding.var
        for binding in bindings
        if isinstance(binding.var, relax.DataflowVar)
        and _is(binding.value, "quantize")
        and dtype_of(binding.var) == "int8"
        and is_constant(binding.value.args[2])
    }
    for binding in bindings:
        if not (_is(binding.value, "dequantize") and is_constant(binding.value.args[2])):
            candidates.difference_update(used_vars(binding.value))
    return candidates


def _shifted(call):
    """The same quantize or dequantize with its zero point moved to uint8."""
    data, scale, zero_point = call.args
    moved = relax.const((zero_point.value.numpy().astype(np.int16) + 128).astype(np.uint8))
    axis = int(call.attrs.axis)
    if call.op.name == "relax.quantize":
        return relax.op.quantize(data, scale, moved, axis, "uint8")
    return relax.op.dequantize(data, scale, moved, axis)

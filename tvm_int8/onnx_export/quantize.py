"""QuantizeLinear and DequantizeLinear, per tensor and per channel, and what rules ask about them."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, const_value, op_name
from tvm_int8.passes.move_integers import MOVERS
from tvm_int8.passes.quantization_parameters import quantization_of

from .registry import relax_op
from .writer import OnnxWriter


@relax_op("quantize")
def quantize(out: OnnxWriter, call: relax.Call) -> None:
    """QuantizeLinear; its node is called after the tensor, because the layer's name belongs to its reader."""
    names = tuple(out.constant(array, role) for array, role in _parameters(out, call))
    out.parameters[out.var] = names
    data = _apart(out, call.args[0], "real") if _is_per_channel(call) else call.args[0]
    out.emit("QuantizeLinear", data, *names, name=out.var.name, **_axis(call))


@relax_op("dequantize")
def dequantize(out: OnnxWriter, call: relax.Call) -> None:
    """DequantizeLinear; with the very parameters of the quantize in front where they are the same."""
    source = call.args[0]
    names = out.parameters.get(source) if _same_parameters(call, out.flow.value(source)) else None
    if names is None:
        names = tuple(out.constant(array, role) for array, role in _parameters(out, call))
    inputs, options = (out.tensor(source, "quantized"), *names), {"name": out.var.name, **_axis(call)}
    if _is_per_channel(call) and const_value(source) is None:
        _apart(out, out.emit("DequantizeLinear", *inputs, suffix="real", **options))
    else:
        out.emit("DequantizeLinear", *inputs, **options)


def _apart(out: OnnxWriter, data: str | Expr, suffix: str = "") -> str:
    """The same tensor, by a sum of one: keeps an activation with scales per channel apart from what is around it.

    ONNX Runtime takes any operator between DequantizeLinear and QuantizeLinear for one that its integer kernels can
    compute, and fails when run, because these know one scale per activation.
    """
    return out.emit("Sum", data, suffix=suffix, name=f"{out.var.name}_apart")


def _parameters(out: OnnxWriter, call: relax.Call) -> list[tuple[np.ndarray, str]]:
    found = []
    for arg, role in zip(call.args[1:3], ("scale", "zero_point"), strict=True):
        value = const_value(arg)
        if value is None:
            raise out.error(f"its {role} is computed from the data", "a constant", "quantise the model statically")
        found.append((value.reshape(()) if value.size == 1 and not _is_per_channel(call) else value, role))
    return found


def _is_per_channel(call: relax.Call) -> bool:
    return max(const_value(arg).size for arg in call.args[1:3]) > 1


def _axis(call: relax.Call) -> dict[str, Any]:
    return {"axis": int(call.attrs.axis)} if _is_per_channel(call) else {}


def _same_parameters(call: Expr, other: Expr) -> bool:
    """Whether a dequantize undoes a quantize: same scales, zero points and axis."""
    if op_name(call) != "dequantize" or op_name(other) != "quantize":
        return False
    pairs = [(const_value(a), const_value(b)) for a, b in zip(call.args[1:3], other.args[1:3], strict=True)]
    if any(a is None or b is None for a, b in pairs):
        return False
    return all(np.array_equal(a, b) for a, b in pairs) and _axis(call) == _axis(other)


def behind_idle_pair(flow: Dataflow, expr: Expr) -> Expr:
    """The tensor that a quantize and dequantize leave as it is, because it moves what has their scale already."""
    pair = flow.value(expr)
    if op_name(pair) != "dequantize" or not _same_parameters(pair, quantized := flow.value(pair.args[0])):
        return expr
    moved = flow.value(quantized.args[0])
    source = flow.value(moved.args[0]) if op_name(moved) in MOVERS else None
    same = source is not None and op_name(source) == "dequantize" and quantization_of(source) is not None
    return quantized.args[0] if same and quantization_of(source) == quantization_of(pair) else expr

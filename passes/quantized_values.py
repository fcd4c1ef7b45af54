"""Reading QDQ: what a dequantize stands for, per activation tensor and per weight."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from tvm import relax

from .dataflow import Dataflow
from .expressions import Expr, const_value, dtype_of, op_name
from .groups import is_view


@dataclass(frozen=True)
class Quantized:
    """real = scale * (source - zero_point)."""

    source: Expr
    dtype: str
    scale: float
    zero_point: int


def quantization_of(call: relax.Call) -> tuple[float, int] | None:
    """(scale, zero point) of a per-tensor quantize or dequantize; None when per channel or not constant."""
    scale, zero_point = const_value(call.args[1]), const_value(call.args[2])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0])


def through_views(flow: Dataflow, expr: Expr, until: Container[Expr] = ()) -> Expr:
    """The tensor behind reshapes that only add or drop trailing dimensions of size one.

    Those in `until` are not looked behind.
    """
    while expr not in until and is_view(value := flow.value(expr)):
        expr = value.args[0]
    return expr


def dequantized(flow: Dataflow, expr: Expr) -> Quantized | None:
    """What lies behind an activation that is a per-tensor dequantize of 8-bit integers."""
    value = flow.value(through_views(flow, expr))
    if op_name(value) != "dequantize" or dtype_of(value.args[0]) not in ("uint8", "int8"):
        return None
    if const_value(value.args[0]) is not None or (found := quantization_of(value)) is None:
        return None
    return Quantized(value.args[0], dtype_of(value.args[0]), *found)


def quantized_weight(flow: Dataflow, expr: Expr, out_axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(int8 weight, float32 scale [] or [out]) of a dequantize of a constant, symmetric; None for any other weight."""
    value = flow.value(expr)
    if op_name(value) != "dequantize":
        return None
    weight, scale, zero_point = (const_value(arg) for arg in value.args)
    if weight is None or weight.dtype != np.int8 or scale is None or zero_point is None or np.any(zero_point):
        return None
    if scale.size > 1 and (int(value.attrs.axis) % weight.ndim != out_axis or scale.size != weight.shape[out_axis]):
        return None
    return weight, scale.astype(np.float32).reshape(-1) if scale.size > 1 else scale.astype(np.float32).reshape(())


def real_weight(flow: Dataflow, expr: Expr) -> np.ndarray:
    """The float32 weight, dequantized if need be."""
    value = flow.value(expr)
    if op_name(value) != "dequantize":
        return np.asarray(const_value(value), np.float32)
    weight, scale, zero_point = (const_value(arg) for arg in value.args)
    axis = int(value.attrs.axis) % weight.ndim
    spread = [-1 if i == axis else 1 for i in range(weight.ndim)] if scale.size > 1 else [1] * weight.ndim
    difference = weight.astype(np.float32) - zero_point.astype(np.float32).reshape(
        spread if zero_point.size > 1 else -1
    )
    return difference * scale.astype(np.float32).reshape(spread)

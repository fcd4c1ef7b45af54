"""Reading QDQ: what a dequantize stands for, per activation tensor and per weight."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from .dataflow import Dataflow
from .expressions import Expr, const_value, dtype_of, op_name
from .groups import CONVOLUTIONS, is_view
from .quantization_parameters import channel_quantization_of, quantization_of


@dataclass(frozen=True)
class Quantized:
    """real = scale * (source - zero_point); scale and zero point are numbers, or [C] where each channel has its own."""

    source: Expr
    dtype: str
    scale: Any
    zero_point: Any


def through_views(flow: Dataflow, expr: Expr, until: Container[Expr] = ()) -> Expr:
    """The tensor behind reshapes that only add or drop trailing dimensions of size one.

    Those in `until` are not looked behind.
    """
    while expr not in until and is_view(value := flow.value(expr)):
        expr = value.args[0]
    return expr


def dequantized(flow: Dataflow, expr: Expr) -> Quantized | None:
    """What lies behind an activation that is a per-tensor dequantize of 8-bit integers."""
    return _dequantized(flow.value(through_views(flow, expr)), quantization_of)


def dequantized_by_channel(flow: Dataflow, expr: Expr) -> Quantized | None:
    """What lies behind an activation that is a dequantize per channel of 8-bit integers."""
    return _dequantized(flow.value(expr), channel_quantization_of)


def _dequantized(value: Expr, quantization) -> Quantized | None:
    if op_name(value) != "dequantize" or dtype_of(value.args[0]) not in ("uint8", "int8"):
        return None
    if const_value(value.args[0]) is not None or (found := quantization(value)) is None:
        return None
    return Quantized(value.args[0], dtype_of(value.args[0]), *found)


def multiplies_integers(flow: Dataflow, call: Expr) -> bool:
    """Whether a convolution's or product's data and weight are both dequantized."""
    if op_name(call) not in (*CONVOLUTIONS, "matmul"):
        return False
    return all(op_name(flow.value(operand)) == "dequantize" for operand in call.args[:2])


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

"""Why layers of an imported QDQ model run in FP32: what their operands are, and what INT8 kernels would need."""

from __future__ import annotations

import tvm
from tvm import relax

from .dataflow import Dataflow
from .expressions import Expr, const_value, dtype_of, op_name, shape_of
from .groups import CONVOLUTIONS
from .order_kernels import layer_name
from .quantized_values import dequantized, dequantized_by_channel, through_views
from .weight_zero_points import integer_weight

PRODUCTS = (*CONVOLUTIONS, "nn.conv1d", "nn.conv3d", "matmul")


def float_reasons(mod: tvm.IRModule) -> dict[str, str]:
    """Layer -> why it is not in INT8, for those that a QDQ module (after MoveIntegers) shows a reason for."""
    flow = Dataflow(mod)
    reasons: dict[str, str] = {}
    for binding in flow.bindings:
        if reason := _reason(binding.value, flow):
            reasons.setdefault(layer_name(flow, binding.var), reason)
    return reasons


def _reason(call: Expr, flow: Dataflow) -> str:
    if op_name(call) == "quantize":
        return _reason_of_quantize(call, flow)
    if op_name(call) == "dequantize" or not isinstance(call, relax.Call):
        return ""
    wide = [dtype for operand in call.args if (dtype := _wide_integers(operand, flow))]
    if wide:
        return f"its data are {wide[0]}, and kernels take 8 bits"
    return _reason_of_product(call, flow) if op_name(call) in PRODUCTS else ""


def _reason_of_quantize(call: Expr, flow: Dataflow) -> str:
    if dtype_of(call) not in ("uint8", "int8"):
        return f"stores {dtype_of(call)}, and kernels take 8 bits"
    return "" if dequantized(flow, call.args[0]) else "turns floats into integers"


def _wide_integers(operand: Expr, flow: Dataflow) -> str:
    """The type of integers of more than 8 bits that an operand is a dequantize of."""
    value = flow.value(through_views(flow, operand)) if isinstance(operand.ty, relax.TensorType) else operand
    if op_name(value) != "dequantize" or dtype_of(value.args[0]) in ("uint8", "int8"):
        return ""
    return dtype_of(value.args[0])


def _reason_of_product(call: Expr, flow: Dataflow) -> str:
    data, weight = call.args[:2]
    if op_name(call) not in CONVOLUTIONS:
        shapes = f"{list(shape_of(data))} and {list(shape_of(weight))}"
        return f"no INT8 kernel for {op_name(call).removeprefix('nn.')} of {shapes}"
    stored = flow.value(weight)
    if op_name(stored) != "dequantize":
        return "its weight is computed at run time" if const_value(stored) is None else "its weight is not quantised"
    if integer_weight(flow, weight, 1 if op_name(call) == "nn.conv2d_transpose" else 0) is None:
        return "its weight is not a constant of 8 bits with one scale, or one per output channel"
    if dequantized(flow, data) is None and dequantized_by_channel(flow, data) is None:
        return "its data are not quantised"
    if dequantized(flow, data) is None and int(call.attrs.groups) == 1:
        return "its data have a scale per channel, and it adds channels up"
    return ""

"""Quantised operators: QuantizeLinear and DequantizeLinear as they are, everything else as DQ -> float operator -> Q.

A weight that arrives through DequantizeLinear stays the integers it is (`QuantizedConstant`); a bias stored as int32
becomes the float constant it stands for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from tvm import relax
from tvm.relax import op

from . import onnx_activation, onnx_conv, onnx_pool
from .onnx_registry import MICROSOFT, Node, onnx_op
from .values import IntegerValued, QuantizedConstant, Value, along_axis, real_constant

_QUANTIZED = {"int8", "uint8", "int16", "uint16"}


def _parameter(ctx, node: Node, value: Value | None, role: str, dtype=None) -> np.ndarray:
    array = ctx.static(node, value, role)
    array = np.zeros((), dtype) if array is None else np.asarray(array)
    array = array.reshape(()) if array.size == 1 else array
    if array.ndim > 1:
        raise node.error(f"has a {role} of shape {list(array.shape)}", "one per tensor or one per channel")
    return array.astype(np.float32) if dtype is None else array.astype(dtype)


def _axis(node: Node, rank: int, default: int = 1) -> int:
    return node.axis(rank, default) if rank > 1 else 0


@onnx_op("QuantizeLinear")
@onnx_op("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(ctx, node: Node, x: Value, scale: Value, zero_point: Value | None = None) -> relax.Var:
    """QuantizeLinear to 8 or 16 bits, per tensor or per channel."""
    if node.get("block_size", 0):
        raise node.error("quantises activations in blocks", "one scale per tensor or per channel")
    requested = node.get("output_dtype", 0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(requested).name if requested else "uint8"
    dtype = dtype if zero_point is None else ctx.dtype(zero_point)
    return quantize(ctx, node, x, scale, zero_point, dtype, _axis(node, len(ctx.shape(x))))


def quantize(ctx, node: Node, x: Value, scale, zero_point, dtype: str, axis: int = 1, suffix: str = "") -> relax.Var:
    """``relax.quantize`` with constant parameters."""
    if dtype not in _QUANTIZED:
        raise node.error(f"quantises to {dtype}", "int8 or uint8", "quantise the model to 8 bits")
    scale, zero = _parameter(ctx, node, scale, "scale"), _parameter(ctx, node, zero_point, "zero point", dtype)
    if _runs_lifted(ctx, x, scale, axis):
        lifted = op.quantize(ctx.lift(x), ctx.expr(scale), ctx.expr(zero), 1, dtype)
        return ctx.lower_to_signal(ctx.emit(lifted, suffix))
    return ctx.emit(op.quantize(ctx.expr(x), ctx.expr(scale), ctx.expr(zero), axis, dtype), suffix)


def _runs_lifted(ctx, x: Value, scale: np.ndarray, axis: int) -> bool:
    """Whether a 1-D network's value is quantised as [N, C, 1, W], like what its convolutions read and write."""
    if not isinstance(x, relax.Var) or len(ctx.shape(x)) != 3 or (scale.ndim and axis != 1):
        return False
    return ctx.can_lift([x]) or ctx.emitter.definition(x) is None


@onnx_op("DequantizeLinear")
@onnx_op("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(ctx, node: Node, x: Value, scale: Value, zero_point: Value | None = None) -> Value:
    """DequantizeLinear: a constant stays quantised (8 bits) or becomes float (the rest), a variable is dequantised."""
    if node.get("block_size", 0):
        return _dequantize_blocks(ctx, node, x, scale, zero_point)
    return dequantize(ctx, node, x, scale, zero_point, _axis(node, len(ctx.shape(x))))


def dequantize(ctx, node: Node, x: Value, scale, zero_point, axis: int = 1, suffix: str = "") -> Value:
    """The real value of `x`."""
    scale = _parameter(ctx, node, scale, "scale")
    if isinstance(x, np.ndarray):
        return _dequantized_constant(ctx, node, x, scale, zero_point, axis)
    dtype = ctx.dtype(x)
    if dtype == "int32":
        return ctx.emit(
            op.multiply(op.astype(ctx.expr(x), "float32"), ctx.expr(along_axis(scale, axis, len(ctx.shape(x))))), suffix
        )
    if dtype not in _QUANTIZED:
        raise node.error(f"dequantises {dtype}", "int8 or uint8", "quantise the model to 8 bits")
    zero = _parameter(ctx, node, zero_point, "zero point", dtype)
    if _runs_lifted(ctx, x, scale, axis):
        lifted = op.dequantize(ctx.lift(x), ctx.expr(scale), ctx.expr(zero), 1)
        return ctx.lower_to_signal(ctx.emit(lifted, suffix))
    return ctx.emit(op.dequantize(ctx.expr(x), ctx.expr(scale), ctx.expr(zero), axis), suffix)


def _dequantized_constant(ctx, node: Node, q: np.ndarray, scale: np.ndarray, zero_point, axis: int) -> Value:
    if scale.ndim == 1 and (axis >= q.ndim or q.shape[axis] != scale.size):
        raise node.error(f"has {scale.size} scales for axis {axis} of {list(q.shape)}", "one per channel")
    zero_dtype = q.dtype if q.dtype in (np.int8, np.uint8) else np.float64
    return real_constant(q, scale, _parameter(ctx, node, zero_point, "zero point", zero_dtype), axis)


def _dequantize_blocks(ctx, node: Node, x: Value, scale: Value, zero_point: Value | None) -> np.ndarray:
    q, scale = ctx.static(node, x, "data"), np.asarray(ctx.static(node, scale, "scale")).astype(np.float32)
    axis, block = _axis(node, q.ndim), int(node.get("block_size"))
    zero = np.zeros_like(scale) if zero_point is None else ctx.static(node, zero_point, "zero point").astype(np.float32)
    spread = [np.repeat(array, block, axis).take(range(q.shape[axis]), axis) for array in (scale, zero)]
    return ((q.astype(np.float32) - spread[1]) * spread[0]).astype(np.float32)


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize_linear(ctx, node: Node, x: Value):
    """Refused: its scale is only known at run time."""
    raise node.error(
        "chooses its scale at run time",
        "static quantisation",
        "hand in the float model, or quantise it statically (QDQ)",
    )


# Operators on integer tensors.


@onnx_op("QLinearConv")
def qlinear_conv(ctx, node: Node, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias=None) -> relax.Var:
    """QLinearConv; its int32 bias has scale ``x_scale * w_scale``."""
    real = dequantize(ctx, node, x, x_scale, x_zero, suffix="input")
    weight = dequantize(ctx, node, w, w_scale, w_zero, axis=0, suffix="weight")
    if bias is not None:
        factor = _parameter(ctx, node, x_scale, "scale") * _parameter(ctx, node, w_scale, "scale")
        bias = (ctx.static(node, bias, "bias") * factor).astype(np.float32)
    out = onnx_conv.conv(ctx, node, real, weight, bias)
    return quantize(ctx, node, out, y_scale, y_zero, ctx.dtype(y_zero), suffix="quantized")


@onnx_op("ConvInteger")
def conv_integer(ctx, node: Node, x, w, x_zero=None, w_zero=None) -> IntegerValued:
    """ConvInteger, as a float convolution of integers."""
    one = np.ones((), np.float32)
    real = dequantize(ctx, node, x, one, x_zero, suffix="input")
    weight = dequantize(ctx, node, w, one, w_zero, axis=0, suffix="weight")
    return IntegerValued(onnx_conv.conv(ctx, node, real, weight))


@onnx_op("MatMulInteger")
def matmul_integer(ctx, node: Node, a, b, a_zero=None, b_zero=None) -> IntegerValued:
    """MatMulInteger, as a float product of integers."""
    one = np.ones((), np.float32)
    left = dequantize(ctx, node, a, one, a_zero, axis=len(ctx.shape(a)) - 2, suffix="input")
    right = dequantize(ctx, node, b, one, b_zero, axis=len(ctx.shape(b)) - 1, suffix="weight")
    return IntegerValued(onnx_conv.matmul(ctx, node, left, right))


@onnx_op("QLinearMatMul")
@onnx_op("QLinearMatMul", domain=MICROSOFT)
def qlinear_matmul(ctx, node: Node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero) -> relax.Var:
    """QLinearMatMul; the right operand may have a scale per column."""
    left = dequantize(ctx, node, a, a_scale, a_zero, axis=len(ctx.shape(a)) - 2, suffix="input")
    right = dequantize(ctx, node, b, b_scale, b_zero, axis=len(ctx.shape(b)) - 1, suffix="weight")
    out = onnx_conv.matmul(ctx, node, left, right)
    return quantize(ctx, node, out, y_scale, y_zero, ctx.dtype(y_zero), suffix="quantized")


@onnx_op("QGemm", domain=MICROSOFT)
def qgemm(ctx, node: Node, a, a_scale, a_zero, b, b_scale, b_zero, c=None, y_scale=None, y_zero=None) -> relax.Var:
    """QGemm; its int32 bias has scale ``alpha * a_scale * b_scale``, its result is float without a y_scale."""
    channel = 0 if node.get("transB", 0) else 1
    left = dequantize(ctx, node, a, a_scale, a_zero, suffix="input")
    right = dequantize(ctx, node, b, b_scale, b_zero, axis=channel, suffix="weight")
    if c is not None:
        factor = _parameter(ctx, node, a_scale, "scale") * _parameter(ctx, node, b_scale, "scale")
        factor = factor * np.float32(node.get("alpha", 1.0))
        c = (ctx.static(node, c, "bias") * factor).astype(np.float32)
    out = onnx_conv.gemm(ctx, node, left, right, c)
    if y_scale is None:
        return out
    return quantize(
        ctx, node, out, y_scale, y_zero, "uint8" if y_zero is None else ctx.dtype(y_zero), suffix="quantized"
    )


def _qdtype(ctx, y_zero, x) -> str:
    return ctx.dtype(x if y_zero is None else y_zero)


def _real(ctx, node: Node, x: Value, scale: Value, zero_point: Value, suffix: str) -> relax.Expr:
    """The real value of an operand that is no weight, as an expression."""
    real = dequantize(ctx, node, x, scale, zero_point, suffix=suffix)
    return ctx.expr(real.dequantized() if isinstance(real, QuantizedConstant) else real)


@onnx_op("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(ctx, node: Node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None) -> relax.Var:
    """QLinearAdd and QLinearMul."""
    left = _real(ctx, node, a, a_scale, a_zero, "a")
    right = _real(ctx, node, b, b_scale, b_zero, "b")
    apply = op.add if node.op_type == "QLinearAdd" else op.multiply
    out = ctx.emit(apply(left, right))
    return quantize(ctx, node, out, y_scale, y_zero, _qdtype(ctx, y_zero, a), suffix="quantized")


@onnx_op("QLinearWhere", domain=MICROSOFT)
def qlinear_where(ctx, node: Node, condition, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero) -> relax.Var:
    """QLinearWhere."""
    left = _real(ctx, node, a, a_scale, a_zero, "a")
    right = _real(ctx, node, b, b_scale, b_zero, "b")
    out = ctx.emit(op.where(ctx.expr(condition), left, right))
    return quantize(ctx, node, out, y_scale, y_zero, ctx.dtype(y_zero), suffix="quantized")


@onnx_op("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(ctx, node: Node, y_scale, y_zero, *triples) -> relax.Var:
    """QLinearConcat of (tensor, scale, zero point) triples."""
    parts = [
        _real(ctx, node, x, scale, zero_point, f"input{index}")
        for index, (x, scale, zero_point) in enumerate(zip(*(triples[i::3] for i in range(3)), strict=True))
    ]
    out = ctx.emit(op.concat(parts, int(node.get("axis"))))
    return quantize(ctx, node, out, y_scale, y_zero, _qdtype(ctx, y_zero, triples[0]), suffix="quantized")


def _float_handler(node: Node):
    if node.op_type == "QLinearSigmoid":
        return lambda ctx, inner, x: ctx.emit(op.sigmoid(x))
    return {
        "QLinearAveragePool": onnx_pool.average_pool,
        "QLinearGlobalAveragePool": onnx_pool.global_average_pool,
        "QLinearLeakyRelu": onnx_activation.leaky_relu,
        "QLinearSoftmax": onnx_activation.softmax,
    }[node.op_type]


@onnx_op("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
@onnx_op("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MICROSOFT)
def qlinear_unary(ctx, node: Node, x, x_scale, x_zero, y_scale, y_zero=None) -> relax.Var:
    """A quantised operator of one tensor."""
    if node.get("channels_last", 0):
        raise node.error("has channels_last=1", "NCHW", "turn ONNX Runtime's layout optimisation off")
    real = dequantize(ctx, node, x, x_scale, x_zero, suffix="input")
    inner = replace(node, opset=int(node.get("opset", 13)))
    out = _float_handler(node)(ctx, inner, real)
    return quantize(ctx, node, out, y_scale, y_zero, _qdtype(ctx, y_zero, x), suffix="quantized")

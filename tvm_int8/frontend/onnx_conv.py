"""Convolution, transposed convolution and matrix products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.relax import op

from .onnx_registry import MICROSOFT, Node, onnx_op
from .onnx_window import Window
from .values import QuantizedConstant, Value, transposed_copy


@onnx_op("Conv")
def conv(ctx, node: Node, x: Value, weight: Value, bias: Value | None = None) -> relax.Var:
    """Conv over one, two or three spatial axes; a zero padding in front of it becomes its own."""
    rank = len(ctx.shape(weight)) - 2
    if not 1 <= rank <= 3:
        raise node.error(f"has {rank} spatial axes", "1, 2 or 3")
    window = Window.of(node, ctx.shape(x)[2:], ctx.shape(weight)[2:])
    window.require_output(node)
    if rank == 1:
        return ctx.lower_to_signal(_conv_2d(ctx, node, ctx.lift(x), _expand_kernel(ctx, weight), bias, window.as_2d()))
    if rank == 2:
        return _conv_2d(ctx, node, x, weight, bias, window)
    out = op.nn.conv3d(
        ctx.expr(x), ctx.expr(weight), window.strides, window.padding, window.dilations, node.get("group", 1)
    )
    return add_bias(ctx, ctx.emit(out), bias)


def _conv_2d(ctx, node: Node, x: Value, weight: Value, bias: Value | None, window: Window) -> relax.Var:
    group = node.get("group", 1)
    channels, expected = ctx.shape(x)[1], ctx.shape(weight)[1] * group
    if channels != expected:
        raise node.error(f"its input has {channels} channels", f"{expected}, as its weight says", "check the model")
    source, window = absorb_padding(ctx, ctx.expr(x), window)
    out = op.nn.conv2d(source, ctx.expr(weight), window.strides, window.padding, window.dilations, group)
    return add_bias(ctx, ctx.emit(out), bias)


def absorb_padding(ctx, x, window: Window):
    """``conv(pad(x))`` -> ``conv(x)`` with the padding, when it is of zeros and spatial."""
    call = ctx.emitter.defined_by(x, "nn.pad")
    if call is None or str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value) != 0.0:
        return x, window
    widths = [int(width) for width in call.attrs.pad_width]
    if any(widths[:4]) or any(width < 0 for width in widths):
        return x, window
    begin = tuple(own + extra for own, extra in zip(window.begin, widths[4::2], strict=True))
    end = tuple(own + extra for own, extra in zip(window.end, widths[5::2], strict=True))
    return call.args[0], replace(window, begin=begin, end=end)


def add_bias(ctx, out: relax.Var, bias: Value | None) -> relax.Var:
    """Add a bias [C] along axis 1 of `out`, as a binding of its own."""
    if bias is None:
        return out
    shape = (1, -1) + (1,) * (len(ctx.shape(out)) - 2)
    if isinstance(bias, QuantizedConstant):
        bias = bias.dequantized()
    if isinstance(bias, np.ndarray):
        return ctx.emit(op.add(out, ctx.expr(bias.reshape(shape))), "bias")
    return ctx.emit(op.add(out, op.reshape(bias, (1, ctx.shape(bias)[0], *shape[2:]))), "bias")


def _expand_kernel(ctx, weight: Value) -> Value:
    """[O, I, K] -> [O, I, 1, K]."""
    out_channels, in_channels, taps = ctx.shape(weight)
    shape = (out_channels, in_channels, 1, taps)
    if isinstance(weight, relax.Var):
        return ctx.emit(op.reshape(weight, shape), "weight")
    reshaped = weight.reshape(shape) if isinstance(weight, np.ndarray) else weight.reshaped(shape)
    return weight.dequantized().reshape(shape) if reshaped is None else reshaped


@onnx_op("ConvTranspose")
def conv_transpose(ctx, node: Node, x: Value, weight: Value, bias: Value | None = None) -> relax.Var:
    """ConvTranspose over one or two spatial axes."""
    rank = len(ctx.shape(weight)) - 2
    if rank == 1:
        x, weight = ctx.lift(x), _expand_kernel(ctx, weight)
    elif rank != 2:
        raise node.error(f"has {rank} spatial axes", "1 or 2")
    size, kernel = ctx.shape(x)[2:], ctx.shape(weight)[2:]
    window, extra = _transposed_window(node, size[2 - rank :], kernel[2 - rank :])
    if rank == 1:
        window, extra = window.as_2d(), (0, *extra)
    out = op.nn.conv2d_transpose(
        ctx.expr(x), ctx.expr(weight), window.strides, window.padding, extra, window.dilations, node.get("group", 1)
    )
    out = add_bias(ctx, ctx.emit(out), bias)
    return ctx.lower_to_signal(out) if rank == 1 else out


def _transposed_window(node: Node, size, kernel) -> tuple[Window, tuple[int, ...]]:
    """Explicit pads and output padding; ``auto_pad`` and ``output_shape`` say what the pads have to lead to."""
    rank = len(size)
    extra = tuple(node.get("output_padding") or [0] * rank)
    mode = node.get("auto_pad", "NOTSET")
    plain = Node(
        node.op_type, "", node.label, [], [], {**node.attributes, "auto_pad": "NOTSET"}, node.opset, node.proto
    )
    window = Window.of(plain, size, kernel)
    target = node.get("output_shape")
    if target:
        target = target[-rank:]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        target = [extent * stride for extent, stride in zip(size, window.strides, strict=True)]
    elif mode == "VALID":
        return replace(window, begin=(0,) * rank, end=(0,) * rank), extra
    else:
        return window, extra
    begin, end, grown = [], [], []
    for extent, stride, reach, more, wanted in zip(size, window.strides, window.reach, extra, target, strict=True):
        total = stride * (extent - 1) + more + reach - wanted
        grown.append(more + max(-total, 0))
        total = max(total, 0)
        small = total // 2
        begin.append(small if mode == "SAME_UPPER" else total - small)
        end.append(total - small if mode == "SAME_UPPER" else small)
    return replace(window, begin=tuple(begin), end=tuple(end)), tuple(grown)


@onnx_op("Gemm")
def gemm(ctx, node: Node, a: Value, b: Value, c: Value | None = None) -> relax.Var:
    """``alpha * A' @ B' + beta * C`` as matmul + add; factors go into constants where there are any."""
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    a = _transpose_matrix(ctx, a) if node.get("transA", 0) else a
    b = _transpose_matrix(ctx, b) if node.get("transB", 0) else b
    if alpha != 1.0 and isinstance(b, np.ndarray):
        b, alpha = (b * np.asarray(alpha, b.dtype)).astype(b.dtype), 1.0
    out = ctx.emit(op.matmul(ctx.expr(a), ctx.expr(b)))
    if alpha != 1.0:
        out = ctx.emit(op.multiply(out, ctx.scalar(alpha)), "alpha")
    if c is None or beta == 0.0:
        return out
    if isinstance(c, QuantizedConstant):
        c = c.dequantized()
    if isinstance(c, np.ndarray):
        c = c * np.asarray(beta, c.dtype) if beta != 1.0 else c
        return ctx.emit(op.add(out, ctx.expr(c.reshape(-1) if c.ndim == 2 and c.shape[0] == 1 else c)), "bias")
    scaled = c if beta == 1.0 else op.multiply(c, ctx.scalar(beta))
    return ctx.emit(op.add(out, scaled), "bias")


def _transpose_matrix(ctx, value: Value) -> Value:
    if isinstance(value, np.ndarray):
        return transposed_copy(value)
    if isinstance(value, QuantizedConstant):
        return value.transposed((1, 0))
    return ctx.emit(op.permute_dims(value, (1, 0)), "transposed")


@onnx_op("MatMul")
def matmul(ctx, node: Node, a: Value, b: Value) -> relax.Var:
    """MatMul with NumPy's semantics."""
    return ctx.emit(op.matmul(ctx.expr(a), ctx.expr(b)))


@onnx_op("FusedConv", domain=MICROSOFT)
def fused_conv(ctx, node: Node, x: Value, weight: Value, bias: Value | None = None, addend: Value | None = None):
    """ONNX Runtime's convolution with addition and activation."""
    from .onnx_activation import apply_activation

    out = conv(ctx, node, x, weight, bias)
    if addend is not None:
        out = ctx.emit(op.add(out, ctx.expr(addend)), "add")
    return apply_activation(ctx, node, out, node.get("activation", ""), node.get("activation_params") or [])

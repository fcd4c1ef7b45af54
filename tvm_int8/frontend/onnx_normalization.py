"""Normalisation layers.

Batch normalisation keeps its operator, which a pass folds; the others become reductions and arithmetic.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op

from .onnx_registry import Node, onnx_op
from .values import Value


@onnx_op("BatchNormalization")
def batch_normalization(ctx, node: Node, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> relax.Var:
    """BatchNormalization at inference: ``nn.batch_norm`` over images, scale and shift over anything else."""
    if node.get("training_mode", 0):
        raise node.error("is in training mode", "inference", "export the model in evaluation mode")
    statistics = [ctx.static(node, value, role) for value, role in ((mean, "mean"), (var, "variance"))]
    affine = [ctx.static(node, value, role) for value, role in ((scale, "scale"), (bias, "bias"))]
    epsilon = float(node.get("epsilon", 1e-5))
    if len(ctx.shape(x)) == 4 and all(array.ndim == 1 for array in (*affine, *statistics)):
        constants = [ctx.expr(array) for array in (*affine, *statistics)]
        normalized = ctx.emit(
            op.nn.batch_norm(ctx.expr(x), *constants, axis=1, epsilon=epsilon, training=False), "stats"
        )
        return ctx.emit(relax.TupleGetItem(normalized, 0))
    gamma, beta, mean, var = (array.astype(np.float32) for array in (*affine, *statistics))
    factor = (gamma / np.sqrt(var + np.float32(epsilon))).astype(np.float32)
    offset = (beta - mean * factor).astype(np.float32)
    along = (1, -1, *(1,) * (len(ctx.shape(x)) - 2)) if factor.ndim == 1 else (1, *factor.shape)
    scaled = ctx.emit(op.multiply(ctx.expr(x), ctx.expr(factor.reshape(along))), "scale")
    return ctx.emit(op.add(scaled, ctx.expr(offset.reshape(along))))


def normalize(ctx, x, axes: list[int], epsilon: float) -> relax.Var:
    """``(x - mean) / sqrt(variance + epsilon)`` over `axes`."""
    centred = ctx.emit(op.subtract(x, op.mean(x, axes, keepdims=True)), "centred")
    variance = op.mean(op.multiply(centred, centred), axes, keepdims=True)
    deviation = op.sqrt(op.add(variance, ctx.scalar(epsilon)))
    return ctx.emit(op.divide(centred, deviation), "normalized")


def _statistics(ctx, x, axes: list[int], epsilon: float) -> list[relax.Var]:
    """Mean and inverse deviation over `axes`, which are kept."""
    mean = ctx.emit(op.mean(x, axes, keepdims=True), "mean")
    centred = op.subtract(x, mean)
    variance = op.mean(op.multiply(centred, centred), axes, keepdims=True)
    deviation = op.sqrt(op.add(variance, ctx.scalar(epsilon)))
    return [mean, ctx.emit(op.divide(ctx.scalar(1.0), deviation), "inverse_deviation")]


def _scale_and_shift(ctx, x, scale, bias, shape) -> relax.Var:
    for name, value, apply in (("scale", scale, op.multiply), ("shift", bias, op.add)):
        if value is not None:
            value = value.reshape(shape) if isinstance(value, np.ndarray) else op.reshape(ctx.expr(value), shape)
            x = ctx.emit(apply(x, ctx.expr(value) if isinstance(value, np.ndarray) else value), name)
    return x


@onnx_op("InstanceNormalization")
def instance_normalization(ctx, node: Node, x: Value, scale: Value, bias: Value) -> relax.Var:
    """InstanceNormalization: statistics over the spatial axes."""
    rank, channels = len(ctx.shape(x)), ctx.shape(x)[1]
    out = normalize(ctx, ctx.expr(x), list(range(2, rank)), float(node.get("epsilon", 1e-5)))
    return _scale_and_shift(ctx, out, scale, bias, (1, channels, *(1,) * (rank - 2)))


@onnx_op("GroupNormalization")
def group_normalization(ctx, node: Node, x: Value, scale: Value, bias: Value) -> relax.Var:
    """GroupNormalization; scale and bias per group (opset 18) or per channel (21)."""
    shape, groups = ctx.shape(x), int(node.get("num_groups"))
    grouped = ctx.emit(op.reshape(ctx.expr(x), (shape[0], groups, int(np.prod(shape[1:])) // groups)), "groups")
    out = normalize(ctx, grouped, [2], float(node.get("epsilon", 1e-5)))
    per_group = ctx.shape(scale)[0] == groups and groups != shape[1]
    if per_group:
        out = _scale_and_shift(ctx, out, scale, bias, (1, groups, 1))
    out = ctx.emit(op.reshape(out, shape), "ungrouped")
    return out if per_group else _scale_and_shift(ctx, out, scale, bias, (1, shape[1], *(1,) * (len(shape) - 2)))


@onnx_op("LayerNormalization")
def layer_normalization(ctx, node: Node, x: Value, scale: Value, bias: Value | None = None) -> list[relax.Var]:
    """LayerNormalization over the axes from `axis` on; mean and inverse deviation where the model asks for them."""
    shape = ctx.shape(x)
    axes, epsilon = list(range(node.axis(len(shape), -1), len(shape))), float(node.get("epsilon", 1e-5))
    statistics = _statistics(ctx, ctx.expr(x), axes, epsilon) if any(node.outputs[1:]) else []
    out = normalize(ctx, ctx.expr(x), axes, epsilon)
    for name, value, apply in (("scale", scale, op.multiply), ("shift", bias, op.add)):
        if value is not None:
            out = ctx.emit(apply(out, ctx.expr(value)), name)
    return [out, *statistics]


@onnx_op("RMSNormalization")
def rms_normalization(ctx, node: Node, x: Value, scale: Value) -> relax.Var:
    """RMSNormalization over the axes from `axis` on: divided by the root of the mean square."""
    shape, x = ctx.shape(x), ctx.expr(x)
    axes = list(range(node.axis(len(shape), -1), len(shape)))
    mean_square = op.mean(op.multiply(x, x), axes, keepdims=True)
    root = op.sqrt(op.add(mean_square, ctx.scalar(float(node.get("epsilon", 1e-5)))))
    return ctx.emit(op.multiply(ctx.emit(op.divide(x, root), "normalized"), ctx.expr(scale)))


@onnx_op("MeanVarianceNormalization")
def mean_variance_normalization(ctx, node: Node, x: Value) -> relax.Var:
    """MeanVarianceNormalization; ONNX adds 1e-9 to the deviation."""
    axes = [int(axis) for axis in node.get("axes") or [0, 2, 3]]
    x = ctx.expr(x)
    centred = ctx.emit(op.subtract(x, op.mean(x, axes, keepdims=True)), "centred")
    deviation = op.sqrt(op.mean(op.multiply(centred, centred), axes, keepdims=True))
    return ctx.emit(op.divide(centred, op.add(deviation, ctx.scalar(1e-9))))


@onnx_op("LpNormalization")
def lp_normalization(ctx, node: Node, x: Value) -> relax.Var:
    """LpNormalization: divide by the 1- or 2-norm along an axis."""
    axis, x = int(node.get("axis", -1)), ctx.expr(x)
    if int(node.get("p", 2)) == 1:
        norm = op.sum(op.abs(x), [axis], keepdims=True)
    else:
        norm = op.sqrt(op.sum(op.multiply(x, x), [axis], keepdims=True))
    return ctx.emit(op.divide(x, op.maximum(norm, ctx.scalar(np.finfo(np.float32).tiny))))


def channel_window_sum(ctx, x, size: int, before: int, after: int) -> relax.Var:
    """Sums of `size` neighbouring channels, with `before` and `after` channels of zeros added around them."""
    rank = len(ctx.shape(x))
    padded = ctx.emit(op.nn.pad(x, [0, 0, before, after] + [0, 0] * (rank - 2)), "pad") if before or after else x
    count, total = ctx.shape(padded)[1] - size + 1, None
    for shift in range(size):
        term = ctx.emit(op.strided_slice(padded, [1], [shift], [shift + count]), f"slice{shift}")
        total = term if total is None else ctx.emit(op.add(total, term), f"sum{shift}")
    return total


@onnx_op("LRN")
def local_response_normalization(ctx, node: Node, x: Value) -> relax.Var:
    """``x / (bias + alpha / size * window sum of x^2) ** beta``, in the spelling that `passes.recognize_lrn` knows."""
    size = int(node.get("size"))
    alpha, beta, bias = float(node.get("alpha", 1e-4)), float(node.get("beta", 0.75)), float(node.get("bias", 1.0))
    before, x = (size - 1) // 2, ctx.expr(x)
    total = channel_window_sum(ctx, ctx.emit(op.multiply(x, x), "square"), size, before, size - 1 - before)
    base = op.add(op.multiply(total, ctx.scalar(alpha / size)), ctx.scalar(bias))
    return ctx.emit(op.divide(x, op.power(base, ctx.scalar(beta))))

"""Reductions over axes given as an attribute or as an input. A mean over the whole image is a global average pool."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op

from .onnx_fold import axes_of
from .onnx_registry import Node, onnx_op
from .values import Value


def _log_sum_exp(x, axes, keepdims):
    top = op.max(x, axes, True)
    total = op.log(op.sum(op.exp(op.subtract(x, top)), axes, True))
    shifted = op.add(total, top)
    return shifted if keepdims else op.squeeze(shifted, axes)


_REDUCTIONS = {
    "ReduceMean": op.mean,
    "ReduceSum": op.sum,
    "ReduceMax": op.max,
    "ReduceMin": op.min,
    "ReduceProd": op.prod,
    "ReduceL1": lambda x, axes, keepdims: op.sum(op.abs(x), axes, keepdims),
    "ReduceL2": lambda x, axes, keepdims: op.sqrt(op.sum(op.multiply(x, x), axes, keepdims)),
    "ReduceSumSquare": lambda x, axes, keepdims: op.sum(op.multiply(x, x), axes, keepdims),
    "ReduceLogSum": lambda x, axes, keepdims: op.log(op.sum(x, axes, keepdims)),
    "ReduceLogSumExp": _log_sum_exp,
}


@onnx_op(*_REDUCTIONS)
def reduce(ctx, node: Node, x: Value, axes: Value | None = None) -> relax.Var | Value:
    """A reduction; nothing when `noop_with_empty_axes` says so."""
    shape = ctx.shape(x)
    chosen = axes_of(node, ctx.static(node, axes, "axes"))
    if not chosen and node.get("noop_with_empty_axes", 0):
        return x
    chosen = sorted({axis % len(shape) for axis in chosen}) if chosen else list(range(len(shape)))
    keepdims = bool(node.get("keepdims", 1))
    if node.op_type == "ReduceMean":
        return mean(ctx, ctx.expr(x), chosen, keepdims)
    if ctx.dtype(x) == "bool":  # any, all
        reduced = _REDUCTIONS[node.op_type](op.astype(ctx.expr(x), "uint8"), chosen, keepdims)
        return ctx.emit(op.astype(reduced, "bool"))
    return ctx.emit(_REDUCTIONS[node.op_type](ctx.expr(x), chosen, keepdims))


def mean(ctx, x, axes: list[int], keepdims: bool) -> relax.Var:
    """A mean; over the spatial axes of an image it is ``nn.adaptive_avg_pool2d`` (and a reshape)."""
    shape = ctx.shape(x)
    if len(shape) != 4 or axes != [2, 3]:
        return ctx.emit(op.mean(x, axes, keepdims))
    pooled = ctx.emit(op.nn.adaptive_avg_pool2d(x, (1, 1)))
    return pooled if keepdims else ctx.emit(op.reshape(pooled, shape[:2]), "flat")

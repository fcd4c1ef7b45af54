"""Relax operators that the canonical form writes differently, and what it writes instead.

A rule is ``rule(ctx, call, *args) -> value | list of values | None``; None keeps the call as it is.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op

from .emitter import shape_of
from .onnx_activation import clip_between
from .onnx_reduce import mean
from .onnx_shape import permute, reshape_to
from .relax_spatial_rules import SPATIAL_RULES
from .values import real_constant

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def _as_reshape(ctx, call, x, *_):
    shape = shape_of(relax.BlockBuilder().normalize(ctx.rebuild(call, [x, *_])))
    return reshape_to(ctx, x, shape)


def _permute_dims(ctx, call, x):
    axes = call.attrs.axes
    return permute(ctx, x, list(range(len(ctx.shape(x))))[::-1] if axes is None else [int(axis) for axis in axes])


def _dropout(ctx, call, x):
    return [x, np.ones(ctx.shape(x), np.float32)]


def _astype(ctx, call, x):
    return x if str(call.attrs.dtype) in _FLOATS and ctx.dtype(x) == "float32" else None


def _mean(ctx, call, x):
    rank = len(ctx.shape(x))
    axes = call.attrs.axis
    axes = list(range(rank)) if axes is None else sorted(int(axis) % rank for axis in axes)
    return mean(ctx, ctx.expr(x), axes, bool(call.attrs.keepdims))


def _batch_norm(ctx, call, x, *parameters):
    """Inference statistics whatever the flag says; scale and shift where the input is no image."""
    epsilon, axis = float(call.attrs.epsilon), int(call.attrs.axis)
    if not all(isinstance(parameter, np.ndarray) for parameter in parameters):
        raise ctx.error(
            "has statistics that are not constant", "bound parameters", "bind them with relax.transform.BindParams"
        )
    gamma, beta, mean_, var = parameters
    gamma = gamma if call.attrs.scale else np.ones_like(var)
    beta = beta if call.attrs.center else np.zeros_like(var)
    if len(ctx.shape(x)) == 4 and axis == 1:
        constants = [ctx.expr(array) for array in (gamma, beta, mean_, var)]
        normalized = op.nn.batch_norm(ctx.expr(x), *constants, axis=1, epsilon=epsilon, training=False)
        return ctx.emit(normalized, "" if ctx.keeps_names else "stats")
    if axis == 1 and ctx.can_lift([x]):
        normalized = _batch_norm(ctx, call, ctx.lift(x), *parameters)
        return [ctx.lower_to_signal(ctx.emit(relax.TupleGetItem(normalized, 0))), mean_, var]
    along = [-1 if position == axis else 1 for position in range(len(ctx.shape(x)))]
    factor = (gamma / np.sqrt(var + np.float32(epsilon))).astype(np.float32)
    offset = (beta - mean_ * factor).astype(np.float32)
    scaled = ctx.emit(op.multiply(ctx.expr(x), ctx.expr(factor.reshape(along))), "scale")
    return [ctx.emit(op.add(scaled, ctx.expr(offset.reshape(along)))), mean_, var]


def _clip(ctx, call, x, low, high):
    low, high, largest = float(low.value), float(high.value), float(np.finfo(np.float32).max)
    return clip_between(ctx, x, -math.inf if low <= -largest else low, math.inf if high >= largest else high)


def _relu6(ctx, call, x):
    return ctx.emit(op.clip(ctx.expr(x), 0.0, 6.0))


def _minimum(ctx, call, a, b):
    """``minimum(relu(x), c)`` is a clip."""
    relu = ctx.emitter.defined_by(a, "nn.relu")
    if relu is None or not isinstance(b, np.ndarray) or b.size != 1 or b.ndim > len(ctx.shape(a)):
        return _elementwise(ctx, call, a, b)
    return ctx.emit(op.clip(relu.args[0], 0.0, float(b.reshape(()))))


def _maximum(ctx, call, a, b):
    if isinstance(b, np.ndarray) and b.ndim == 0 and b == 0 and ctx.dtype(a) == "float32":
        return ctx.emit(op.nn.relu(ctx.expr(a)))
    return _elementwise(ctx, call, a, b)


def _add(ctx, call, a, b):
    """Constants come second."""
    if isinstance(a, np.ndarray) and isinstance(b, relax.Var):
        a, b = b, a
    lifted = _elementwise(ctx, call, a, b)
    return ctx.emit(op.add(ctx.expr(a), ctx.expr(b))) if lifted is None else lifted


def _multiply(ctx, call, a, b):
    for x, gate in ((a, b), (b, a)):
        sigmoid = ctx.emitter.defined_by(gate, "sigmoid")
        if sigmoid is not None and isinstance(x, relax.Var) and sigmoid.args[0].same_as(x):
            return ctx.emit(op.nn.silu(x))
    if isinstance(a, np.ndarray) and isinstance(b, relax.Var):
        a, b = b, a
    lifted = _elementwise(ctx, call, a, b)
    return ctx.emit(op.multiply(ctx.expr(a), ctx.expr(b))) if lifted is None else lifted


def _elementwise(ctx, call, *args):
    """In a network over 1-D signals, work on the [N, C, 1, W] form."""
    if not ctx.can_lift(args):
        return None
    return ctx.lower_to_signal(ctx.emit(ctx.rebuild(call, [ctx.lift(arg) for arg in args])))


def _prelu(ctx, call, x, slope):
    if isinstance(slope, np.ndarray) and slope.size == 1:
        return ctx.emit(op.nn.leakyrelu(ctx.expr(x), float(slope.reshape(()))))
    return None


def _dequantize(ctx, call, x, scale, zero_point):
    if not all(isinstance(value, np.ndarray) for value in (x, scale, zero_point)):
        return None
    axis = int(call.attrs.axis)
    return real_constant(x, _squeezed(scale), _squeezed(zero_point), axis % max(x.ndim, 1))


def _squeezed(array: np.ndarray) -> np.ndarray:
    return array.reshape(()) if array.size == 1 else array


RULES = {
    **SPATIAL_RULES,
    "reshape": _as_reshape,
    "flatten": _as_reshape,
    "squeeze": _as_reshape,
    "expand_dims": _as_reshape,
    "nn.batch_flatten": _as_reshape,
    "permute_dims": _permute_dims,
    "nn.dropout": _dropout,
    "astype": _astype,
    "mean": _mean,
    "nn.batch_norm": _batch_norm,
    "clip": _clip,
    "nn.relu6": _relu6,
    "add": _add,
    "multiply": _multiply,
    "minimum": _minimum,
    "maximum": _maximum,
    "nn.prelu": _prelu,
    "dequantize": _dequantize,
}
RULES |= dict.fromkeys(
    ("subtract", "divide", "nn.relu", "sigmoid", "tanh", "nn.leakyrelu", "nn.silu", "nn.gelu"), _elementwise
)

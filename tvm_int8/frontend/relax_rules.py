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
from .onnx_conv import absorb_padding
from .onnx_normalization import channel_window_sum
from .onnx_reduce import mean
from .onnx_shape import permute, reshape_to
from .onnx_window import Window
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


def _adaptive_avg_pool2d(ctx, call, x):
    """Any output size that divides the input is a plain average pool."""
    (_, _, height, width), size = ctx.shape(x), call.attrs.output_size
    if size is None or str(call.attrs.layout) != "NCHW":
        return None
    rows, columns = (int(extent) for extent in size)
    if (rows, columns) == (height, width):
        return x
    if (rows, columns) == (1, 1) or height % rows or width % columns:
        return None
    kernel = (height // rows, width // columns)
    return ctx.emit(op.nn.avg_pool2d(ctx.expr(x), kernel, kernel))


def _avg_pool2d(ctx, call, x):
    attrs = call.attrs
    whole = tuple(int(k) for k in attrs.pool_size) == ctx.shape(x)[2:]
    if (
        str(attrs.layout) != "NCHW"
        or not whole
        or any(int(p) for p in attrs.padding)
        or any(int(d) != 1 for d in attrs.dilation)
    ):
        return None
    return ctx.emit(op.nn.adaptive_avg_pool2d(ctx.expr(x), (1, 1)))


def _avg_pool3d(ctx, call, x):
    """A pool over channels, which is what TVM's importers make of LRN: a sum of slices instead."""
    a, shape, pads = call.attrs, ctx.shape(x), _ints(call.attrs.padding)
    size = int(a.pool_size[0])
    others = (*_ints(a.pool_size)[1:], *_ints(a.strides), *_ints(a.dilation), *(1 + pads[i] for i in (1, 2, 4, 5)))
    if shape[1] != 1 or set(others) != {1} or str(a.layout) != "NCDHW" or (any(pads) and not a.count_include_pad):
        return None
    source = ctx.expr(reshape_to(ctx, x, (shape[0], *shape[2:]), "channels"))
    total = channel_window_sum(ctx, source, size, pads[0], pads[3])
    out = ctx.emit(op.multiply(total, ctx.scalar(1.0 / size)))
    return reshape_to(ctx, out, (shape[0], 1, *ctx.shape(out)[1:]), "volume")


def _conv2d(ctx, call, x, weight):
    """Take the zero padding in front of the convolution into it, and drop a float output dtype."""
    attrs = call.attrs
    if str(attrs.data_layout) != "NCHW" or str(attrs.kernel_layout) != "OIHW":
        raise ctx.error(
            f"has layouts {attrs.data_layout} and {attrs.kernel_layout}", "NCHW and OIHW", "convert the layout"
        )
    pads = _ints(attrs.padding)
    window = Window(
        ctx.shape(x)[2:], ctx.shape(weight)[2:], _ints(attrs.strides), _ints(attrs.dilation), pads[:2], pads[2:]
    )
    source, window = absorb_padding(ctx, ctx.expr(x), window)
    call = op.nn.conv2d(source, ctx.expr(weight), window.strides, window.padding, window.dilations, int(attrs.groups))
    return ctx.emit(call)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _widened(values) -> tuple[int, ...]:
    return (1, *_ints(values))


def _padding(values) -> tuple[int, ...]:
    begin, end = _ints(values)
    return (0, begin, 0, end)


def _weight_2d(ctx, weight):
    out_channels, in_channels, taps = ctx.shape(weight)
    return ctx.expr(reshape_to(ctx, weight, (out_channels, in_channels, 1, taps)))


def _conv1d(ctx, call, x, weight):
    attrs = call.attrs
    out = op.nn.conv2d(
        ctx.lift(x),
        _weight_2d(ctx, weight),
        _widened(attrs.strides),
        _padding(attrs.padding),
        _widened(attrs.dilation),
        int(attrs.groups),
    )
    return ctx.lower_to_signal(ctx.emit(out))


def _conv1d_transpose(ctx, call, x, weight):
    attrs = call.attrs
    out = op.nn.conv2d_transpose(
        ctx.lift(x),
        _weight_2d(ctx, weight),
        _widened(attrs.strides),
        _padding(attrs.padding),
        (0, *_ints(attrs.output_padding)),
        _widened(attrs.dilation),
        int(attrs.groups),
    )
    return ctx.lower_to_signal(ctx.emit(out))


def _pool1d(pool):
    def rule(ctx, call, x):
        a = call.attrs
        sizes = _widened(a.pool_size), _widened(a.strides), _padding(a.padding), _widened(a.dilation)
        out = pool(ctx.lift(x), *sizes, bool(a.ceil_mode), bool(a.count_include_pad))
        return ctx.lower_to_signal(ctx.emit(out))

    return rule


def _adaptive_avg_pool1d(ctx, call, x):
    size = call.attrs.output_size
    if size is None or int(size[0]) != 1:
        return None
    return ctx.lower_to_signal(ctx.emit(op.nn.adaptive_avg_pool2d(ctx.lift(x), (1, 1))))


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


def _resize2d(ctx, call, x, size):
    """Nearest interpolation by whole factors in the form the ONNX importer writes."""
    attrs, extents = call.attrs, [int(dim) for dim in size.values]
    whole = all(new % old == 0 for new, old in zip(extents, ctx.shape(x)[2:], strict=True))
    rounded = str(attrs.coordinate_transformation_mode) == "half_pixel" and str(attrs.rounding_method).startswith(
        "round"
    )
    if str(attrs.layout) != "NCHW" or str(attrs.method) != "nearest_neighbor" or not whole or not rounded:
        return None
    options = {"method": "nearest_neighbor", "coordinate_transformation_mode": "asymmetric"}
    return ctx.emit(op.image.resize2d(ctx.expr(x), tuple(extents), rounding_method="floor", **options))


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
    "reshape": _as_reshape,
    "flatten": _as_reshape,
    "squeeze": _as_reshape,
    "expand_dims": _as_reshape,
    "nn.batch_flatten": _as_reshape,
    "permute_dims": _permute_dims,
    "nn.dropout": _dropout,
    "astype": _astype,
    "mean": _mean,
    "nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "nn.adaptive_avg_pool1d": _adaptive_avg_pool1d,
    "nn.avg_pool2d": _avg_pool2d,
    "nn.avg_pool3d": _avg_pool3d,
    "nn.avg_pool1d": _pool1d(op.nn.avg_pool2d),
    "nn.max_pool1d": _pool1d(op.nn.max_pool2d),
    "nn.conv2d": _conv2d,
    "nn.conv1d": _conv1d,
    "nn.conv1d_transpose": _conv1d_transpose,
    "nn.batch_norm": _batch_norm,
    "clip": _clip,
    "nn.relu6": _relu6,
    "add": _add,
    "multiply": _multiply,
    "minimum": _minimum,
    "maximum": _maximum,
    "image.resize2d": _resize2d,
    "nn.prelu": _prelu,
    "dequantize": _dequantize,
}
RULES |= dict.fromkeys(
    ("subtract", "divide", "nn.relu", "sigmoid", "tanh", "nn.leakyrelu", "nn.silu", "nn.gelu"), _elementwise
)

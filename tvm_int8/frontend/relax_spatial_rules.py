"""Relax operators over spatial axes: convolutions, pools, resizing; their 1-D forms become 2-D ones.

The rules have the form `relax_rules` describes.
"""

from __future__ import annotations

from tvm.relax import op

from .onnx_conv import absorb_padding
from .onnx_normalization import channel_window_sum
from .onnx_shape import reshape_to
from .onnx_window import Window


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
    x, front, back = _without_channel_pad(ctx, x, pads[0], pads[3])
    shape = ctx.shape(x)
    source = ctx.expr(reshape_to(ctx, x, (shape[0], *shape[2:]), "channels"))
    total = channel_window_sum(ctx, source, size, front, back)
    out = ctx.emit(op.multiply(total, ctx.scalar(1.0 / size)))
    return reshape_to(ctx, out, (shape[0], 1, *ctx.shape(out)[1:]), "volume")


def _without_channel_pad(ctx, x, front: int, back: int):
    """What is in front of an `nn.pad` that adds zeros along the channels of [N, 1, C, H, W], and theirs included."""
    pad = ctx.emitter.defined_by(x, "nn.pad")
    if pad is None or str(pad.attrs.pad_mode) != "constant" or float(pad.attrs.pad_value) != 0:
        return x, front, back
    widths = _ints(pad.attrs.pad_width)
    if any(widths[:4]) or any(widths[6:]) or min(widths) < 0:
        return x, front, back
    return pad.args[0], front + widths[4], back + widths[5]


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


SPATIAL_RULES = {
    "nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "nn.adaptive_avg_pool1d": _adaptive_avg_pool1d,
    "nn.avg_pool2d": _avg_pool2d,
    "nn.avg_pool3d": _avg_pool3d,
    "nn.avg_pool1d": _pool1d(op.nn.avg_pool2d),
    "nn.max_pool1d": _pool1d(op.nn.max_pool2d),
    "nn.conv2d": _conv2d,
    "nn.conv1d": _conv1d,
    "nn.conv1d_transpose": _conv1d_transpose,
    "image.resize2d": _resize2d,
}

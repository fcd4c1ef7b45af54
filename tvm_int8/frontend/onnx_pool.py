"""Pooling over one, two or three spatial axes. A pool over the whole image is ``nn.adaptive_avg_pool2d`` to 1x1."""

from __future__ import annotations

from dataclasses import replace

from tvm import relax
from tvm.relax import op

from .onnx_registry import Node, onnx_op
from .onnx_window import Window
from .values import Value


@onnx_op("MaxPool")
def max_pool(ctx, node: Node, x: Value) -> relax.Var:
    """MaxPool; ceil_mode becomes end padding (which never wins a maximum)."""
    x, window, is_signal = _pool_window(ctx, node, x)
    window = window.covering(bool(node.get("ceil_mode", 0)))
    pool = op.nn.max_pool3d if len(window.size) == 3 else op.nn.max_pool2d
    out = ctx.emit(pool(ctx.expr(x), window.kernel, window.strides, window.padding, window.dilations))
    return ctx.lower_to_signal(out) if is_signal else out


@onnx_op("AveragePool")
def average_pool(ctx, node: Node, x: Value) -> relax.Var:
    """AveragePool; ceil_mode becomes end padding that is never counted."""
    x, window, is_signal = _pool_window(ctx, node, x)
    covering = window.covering(bool(node.get("ceil_mode", 0)))
    includes_pad = bool(node.get("count_include_pad", 0)) and window.is_padded
    source = ctx.expr(x)
    if _is_global(covering):
        out = ctx.emit(op.nn.adaptive_avg_pool2d(source, (1, 1)))
        return ctx.lower_to_signal(out) if is_signal else out
    if includes_pad and covering != window:
        source, window, covering, includes_pad = _pad_first(ctx, source, window, covering)
    pool = op.nn.avg_pool3d if len(window.size) == 3 else op.nn.avg_pool2d
    call = pool(
        source, covering.kernel, covering.strides, covering.padding, covering.dilations, count_include_pad=includes_pad
    )
    out = ctx.emit(call)
    return ctx.lower_to_signal(out) if is_signal else out


def _pool_window(ctx, node: Node, x: Value) -> tuple[Value, Window, bool]:
    size, kernel = ctx.shape(x)[2:], node.get("kernel_shape")
    if kernel is None or not 1 <= len(size) <= 3:
        raise node.error(f"pools over {len(size)} spatial axes with kernel {kernel}", "1 to 3 axes and a kernel_shape")
    window = Window.of(node, size, tuple(kernel))
    window.require_output(node)
    return (ctx.lift(x), window.as_2d(), True) if len(size) == 1 else (x, window, False)


def _is_global(window: Window) -> bool:
    return (
        len(window.size) == 2 and window.kernel == window.size and not window.is_padded and set(window.dilations) == {1}
    )


def _pad_first(ctx, source, window: Window, covering: Window):
    """Counted padding as an explicit pad, so that what ceil_mode adds behind it stays uncounted."""
    widths = [0, 0, 0, 0]
    for begin, end in zip(window.begin, window.end, strict=True):
        widths += [begin, end]
    source = ctx.emit(op.nn.pad(source, widths), "pad")
    size = tuple(b + s + e for b, s, e in zip(window.begin, window.size, window.end, strict=True))
    zeros = (0,) * len(size)
    extra = tuple(max(after - before, 0) for after, before in zip(covering.end, window.end, strict=True))
    return (
        source,
        replace(window, size=size, begin=zeros, end=zeros),
        replace(covering, size=size, begin=zeros, end=extra),
        False,
    )


@onnx_op("GlobalAveragePool")
def global_average_pool(ctx, node: Node, x: Value) -> relax.Var:
    """GlobalAveragePool."""
    rank = len(ctx.shape(x)) - 2
    if rank == 1:
        return ctx.lower_to_signal(ctx.emit(op.nn.adaptive_avg_pool2d(ctx.lift(x), (1, 1))))
    if rank == 2:
        return ctx.emit(op.nn.adaptive_avg_pool2d(ctx.expr(x), (1, 1)))
    return ctx.emit(op.mean(ctx.expr(x), list(range(2, rank + 2)), keepdims=True))


@onnx_op("GlobalMaxPool")
def global_max_pool(ctx, node: Node, x: Value) -> relax.Var:
    """GlobalMaxPool, as a max_pool2d of the image's size."""
    rank = len(ctx.shape(x)) - 2
    if rank == 1:
        x = ctx.lift(x)
        return ctx.lower_to_signal(ctx.emit(op.nn.max_pool2d(x, ctx.shape(x)[2:])))
    if rank == 2:
        return ctx.emit(op.nn.max_pool2d(ctx.expr(x), ctx.shape(x)[2:]))
    return ctx.emit(op.max(ctx.expr(x), list(range(2, rank + 2)), keepdims=True))

"""SubPixelConvolution: a transposed convolution with few channels computes its pixels as channels.

    conv2d_transpose(x, w[C, O, k, k], stride s) -> add(bias)          O * s * s <= 16
        ->  conv2d(x, w'[O * s * s, C, k', k']) -> add(bias')          one channel per channel and offset in a stride
        ->  reshape -> permute_dims -> reshape                         [N, O, s, s, H, W] to [N, O, H * s, W * s]

Requires   constant float weights of one group, one stride for rows and columns, an output that is a multiple of it.
Ensures    the last layer of FSRCNN, one channel, fills 9 of the 16 lanes of a vector in place of one.
Not handled   quantised weights of imported models; more channels, which fill the lanes by themselves.
Method     Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?" (arXiv:1609.07009).  Pixel
           s * q + i of the output reads pixel q + d of the input with the weight at k = i + pad - s * d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_int8.specs import LANES

from .dataflow import Rebuilder, rebuild
from .expressions import Expr, const_value, constant, op_name, shape_of


@tvm.transform.module_pass(opt_level=0, name="SubPixelConvolution")
class SubPixelConvolution:
    """Rewrite transposed convolutions with few channels."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with these rewritten."""
        return rebuild(mod, _rewrite)


def _rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
    if op_name(value) == "nn.conv2d_transpose":
        user = new.old.only_consumer(binding.var)
        if user is not None and _bias(user.value, shape_of(value)) is not None:
            return None  # together with its bias, below
        return _sub_pixel(value, None, binding.var.name, new)
    if op_name(value) == "add" and new.read_once(value.args[0]):
        source = new.value(value.args[0])
        bias = _bias(value, shape_of(value))
        if op_name(source) == "nn.conv2d_transpose" and bias is not None:
            return _sub_pixel(source, bias, binding.var.name, new)
    return None


def _bias(call: Expr, shape: tuple[int, ...]) -> np.ndarray | None:
    """The constant per channel that `call` adds to a tensor of that shape."""
    value = const_value(call.args[1]) if op_name(call) == "add" else None
    if value is None or len(shape) != 4 or shape_of(call) != shape:
        return None
    aligned = (1,) * (4 - value.ndim) + value.shape
    return value.reshape(-1) if aligned == (1, shape[1], 1, 1) else None


@dataclass(frozen=True)
class _Axis:
    """The convolution along one axis: kernel size, padding in front and behind."""

    kernel: int
    front: int
    behind: int


def _axis(size: int, out: int, kernel: int, stride: int, pad: int) -> _Axis:
    """What reads every pixel a stride of the output needs."""
    last = (stride - 1 + pad) // stride  # the farthest pixel ahead
    first = -((kernel - 1 - pad) // stride)
    return _Axis(last - first + 1, -first, out // stride - size + last)


def _sub_pixel(call: relax.Call, bias: np.ndarray | None, name: str, new: Rebuilder) -> Expr | None:
    weight = const_value(call.args[1])
    strides = {int(stride) for stride in call.attrs.strides}
    n, channels, *out = shape_of(call)
    plain = str(call.attrs.data_layout) == "NCHW" and str(call.attrs.kernel_layout) == "IOHW"
    if weight is None or weight.dtype != np.float32 or not plain or len(strides) != 1:
        return None
    (stride,) = strides
    undilated = int(call.attrs.groups) == 1 and {int(d) for d in call.attrs.dilation} == {1}
    if not undilated or stride == 1 or channels * stride**2 > LANES or any(size % stride for size in out):
        return None
    pads = [int(pad) for pad in call.attrs.padding[:2]]
    sizes = shape_of(call.args[0])[2:]
    axes = [
        _axis(size, length, kernel, stride, pad)
        for size, length, kernel, pad in zip(sizes, out, weight.shape[2:], pads, strict=True)
    ]
    if min(pad for axis in axes for pad in (axis.front, axis.behind)) < 0:
        return None
    padding = [axes[0].front, axes[1].front, axes[0].behind, axes[1].behind]
    phases = constant(_phases(weight, stride, pads, axes))
    result = new.emit(relax.op.nn.conv2d(call.args[0], phases, padding=padding), f"{name}_phases")
    if bias is not None:
        repeated = constant(np.repeat(bias, stride**2).astype(np.float32).reshape(1, -1, 1, 1))
        result = new.emit(relax.op.add(result, repeated), f"{name}_bias")
    height, width = (length // stride for length in out)
    split = relax.op.reshape(result, (n, channels, stride, stride, height, width))
    return relax.op.reshape(relax.op.permute_dims(split, [0, 1, 4, 2, 5, 3]), (n, channels, *out))


def _phases(weight: np.ndarray, stride: int, pads: list[int], axes: list[_Axis]) -> np.ndarray:
    """[C, O, kh, kw] -> [O * stride * stride, C, kh', kw']: tap d + front of offset i is tap i + pad - stride * d."""
    inner, channels, *kernel = weight.shape
    taken = np.zeros((channels, stride, stride, inner, axes[0].kernel, axes[1].kernel), np.float32)
    taps = [
        [
            (offset, tap, k)
            for offset in range(stride)
            for tap in range(axis.kernel)
            if 0 <= (k := offset + pad - stride * (tap - axis.front)) < size
        ]
        for axis, pad, size in zip(axes, pads, kernel, strict=True)
    ]
    for i, row, kh in taps[0]:
        for j, column, kw in taps[1]:
            taken[:, i, j, :, row, column] = weight[:, :, kh, kw].T
    return taken.reshape(channels * stride**2, inner, axes[0].kernel, axes[1].kernel)

"""Convolutions, pools and other operators on windows of NCHW tensors, as PyTorch computes them."""

from __future__ import annotations

import torch
from torch.nn import functional
from tvm import relax

from tvm_int8.passes import lrn_op
from tvm_int8.passes.expressions import op_name, shape_of
from tvm_int8.passes.resize_tables import axis_table

from .torch_registry import ints, relax_op

_CONVOLUTIONS = {"nn.conv2d": functional.conv2d, "nn.conv3d": functional.conv3d}
_MAX_POOLS = {"nn.max_pool2d": functional.max_pool2d, "nn.max_pool3d": functional.max_pool3d}


def _padded(x: torch.Tensor, pads: list[int], value: float = 0.0) -> torch.Tensor:
    """Pad by (all before, all after) of the last axes; negative numbers cut off."""
    rank = len(pads) // 2
    pairs = [pads[axis + end * rank] for axis in reversed(range(rank)) for end in (0, 1)]
    return functional.pad(x, pairs, value=value) if any(pads) else x


@relax_op(*_CONVOLUTIONS)
def convolution(call: relax.Call, x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """A convolution; `bias` [O] is added to it, if there is one."""
    attrs, pads = call.attrs, ints(call.attrs.padding)
    rank = len(pads) // 2
    same = pads[:rank] == pads[rank:]
    compute = _CONVOLUTIONS[op_name(call)]
    options = {"stride": ints(attrs.strides), "dilation": ints(attrs.dilation), "groups": int(attrs.groups)}
    if same:
        return compute(x, weight, bias, padding=pads[:rank], **options)
    return compute(_padded(x, pads), weight, bias, **options)


@relax_op("nn.conv2d_transpose")
def transposed_convolution(call: relax.Call, x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """A transposed convolution; padding cuts off what it reaches."""
    attrs = call.attrs
    options = {"stride": ints(attrs.strides), "dilation": ints(attrs.dilation), "groups": int(attrs.groups)}
    whole = functional.conv_transpose2d(x, weight, **options)
    top, left, bottom, right = ints(attrs.padding)
    rows, columns = ints(attrs.output_padding)
    out = _padded(whole, [-top, -left, rows - bottom, columns - right])
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def _pads(call: relax.Call) -> tuple[list[int], list[int]]:
    """Padding at both ends, and what rounding the size up adds to it."""
    attrs, pads = call.attrs, ints(call.attrs.padding)
    taps, strides, dilations = map(ints, (attrs.pool_size, attrs.strides, attrs.dilation))
    rank, extra = len(taps), [0] * len(pads)
    for axis, (size, target) in enumerate(zip(shape_of(call.args[0])[2:], shape_of(call)[2:], strict=True)):
        reach = (target - 1) * strides[axis] + (taps[axis] - 1) * dilations[axis] + 1
        extra[rank + axis] = max(reach - (size + pads[axis] + pads[rank + axis]), 0)
    return pads, extra


@relax_op(*_MAX_POOLS)
def max_pool(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Padding never is a maximum."""
    attrs = call.attrs
    pads = [own + more for own, more in zip(*_pads(call), strict=True)]
    padded = _padded(x, pads, float("-inf"))
    return _MAX_POOLS[op_name(call)](padded, ints(attrs.pool_size), ints(attrs.strides), dilation=ints(attrs.dilation))


@relax_op("nn.avg_pool2d")
def average_pool(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Means over what counts: pixels, and padding if asked to, but not what rounding the size up adds."""
    attrs, (pads, extra) = call.attrs, _pads(call)
    window = ints(attrs.pool_size), ints(attrs.strides)
    summed = functional.avg_pool2d(_padded(_padded(x, pads), extra), *window)
    if not any(extra) and (attrs.count_include_pad or not any(pads)):
        return summed
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = _padded(_padded(ones, pads, float(bool(attrs.count_include_pad))), extra)
    return summed / functional.avg_pool2d(counted, *window)


@relax_op("nn.adaptive_avg_pool2d")
def adaptive_average_pool(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Means over equal parts."""
    return functional.adaptive_avg_pool2d(x, shape_of(call)[2:])


@relax_op(lrn_op.NAME)
def local_response_normalisation(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """See `lrn_op`."""
    size, before = int(call.attrs["size"]), int(call.attrs["before"])
    alpha, beta, bias = (float(call.attrs[name]) for name in ("alpha", "beta", "bias"))
    windows = functional.pad(x.square(), [0, 0, 0, 0, before, size - 1 - before]).unfold(1, size, 1)
    return x / (bias + alpha * windows.mean(-1)) ** beta


@relax_op("image.resize2d")
def resize(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Nearest and linear resizing, one axis after the other."""
    attrs = call.attrs
    mode, rounding = str(attrs.coordinate_transformation_mode), str(attrs.rounding_method)
    methods = {"nearest_neighbor": "nearest", "linear": "linear"}
    if str(attrs.method) not in methods:
        raise NotImplementedError(f"resizes by method '{attrs.method}'")
    for axis in (2, 3):
        size, target = x.shape[axis], shape_of(call)[axis]
        table = axis_table(size, target, methods[str(attrs.method)], mode, rounding)
        low, high = (torch.tensor([row[side] for row in table]) for side in (0, 1))
        share = torch.tensor([row[2] for row in table], dtype=x.dtype).reshape([-1, *[1] * (3 - axis)])
        near = x.index_select(axis, low)
        x = near + (x.index_select(axis, high) - near) * share if share.any() else near
    return x

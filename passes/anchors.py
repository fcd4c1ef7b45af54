"""The anchors of kernels: for each operator, the spec its group becomes (see `order_kernels`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import (
    NOTHING,
    ChannelGather,
    Conv2d,
    Lrn,
    Operand,
    Output,
    Pool2d,
    Program,
    Resize2d,
    Tensor,
    Window2d,
)

from .byte_images import can_pad_by_channel
from .conversions import conversion
from .convolution_weights import is_depthwise, of_zeros
from .epilogue_expression import ACC, Node, apply, channel, linearize, number, split_bias
from .expressions import const_value, dtype_of, op_name, shape_of
from .groups import logical_shape, slice_ranges
from .lrn_op import NAME as LRN
from .quantization_parameters import quantization_of
from .quantized_values import Quantized, dequantized, dequantized_by_channel, real_weight
from .resize_tables import axis_table
from .weight_zero_points import integer_weight, zero_point_term

LARGEST_BIAS = 2**30  # an integer bias beyond this stays a float32 addition


def _ints(values) -> Any:
    return tuple(int(v) for v in values)


def convolution(group) -> relax.Call:
    """nn.conv2d and nn.conv2d_transpose, on integers when data and weight are both quantised."""
    call = group.group.anchor.value
    out_axis = 1 if op_name(call) == "nn.conv2d_transpose" else 0
    quantized = dequantized(group.flow, call.args[0]) or _channels_it_can_read(group.flow, call)
    weight = integer_weight(group.flow, call.args[1], out_axis)
    if quantized is None or quantized.dtype != "uint8" or weight is None:
        group.add_input(call.args[0], "float32", shape_of(call.args[0]))
        values, bias = real_weight(group.flow, call.args[1]), np.zeros(shape_of(call)[1])
        return _convolution(group, _geometry(group, values, _ints(call.attrs.padding), 0), values, ACC, bias, [])
    padding = _ints(call.attrs.padding)
    if any(padding) and _same_everywhere(quantized.zero_point) is None and not is_depthwise(call):
        _add_padded_image(group, quantized, padding)
        padding = (0, 0, 0, 0)
    else:
        group.add_input(quantized.source, "uint8", shape_of(call.args[0]))
    pad_value = _same_everywhere(quantized.zero_point)
    if pad_value is None and not any(padding) and out_axis == 0:
        pad_value = 0  # nothing reads it
    pad = [("pad", quantized.zero_point.astype(np.uint8))] if pad_value is None else []
    geometry = _geometry(group, weight.values, padding, pad_value)
    copies = geometry.groups if geometry.transposed else 1
    scale, zero_point = (
        np.tile(np.broadcast_to(array, weight.values.shape[out_axis]), copies).astype(np.float64)
        for array in (weight.scale, weight.zero_point)
    )
    value = apply("mul", ACC, channel(quantized.scale * scale))
    if zero_point.any():
        factor = -quantized.scale * scale * zero_point
        value = apply("add", value, zero_point_term(group, geometry, factor, quantized.zero_point, pad))
    bias = -of_zeros(weight.values, geometry.transposed, geometry.groups, quantized.zero_point).astype(np.float64)
    return _convolution(group, geometry, weight.values, value, bias, pad)


def _geometry(group, weight: np.ndarray, padding: tuple[int, int, int, int], pad_value: int | None) -> Conv2d:
    """The convolution of the data alone; program and output are still to come."""
    call = group.group.anchor.value
    return Conv2d(
        group.name,
        (group.tensors[0],),
        group.result(Output("float32")),
        RAW,
        Output("float32"),
        kernel=_ints(weight.shape[2:]),
        strides=_ints(call.attrs.strides),
        padding=padding,
        dilation=_ints(call.attrs.dilation),
        groups=int(call.attrs.groups),
        pad_value=pad_value,
        transposed=op_name(call) == "nn.conv2d_transpose",
    )


def _convolution(group, geometry: Conv2d, weight: np.ndarray, value: Node, bias: np.ndarray, pad: list) -> relax.Call:
    """The order of a convolution with its epilogue, which starts from `value`; `bias` is the accumulators' own."""
    integer = weight.dtype == np.int8
    root, scale, offset = split_bias(group.epilogue(value))
    if offset is not None:
        addend = np.broadcast_to(np.asarray(offset.value) / np.asarray(scale.value), bias.shape)
        if integer and np.abs(bias + addend).max() > LARGEST_BIAS:
            root = group.epilogue(value)
        else:
            bias = bias + (np.rint(addend) if integer else addend)
    root, output = group.output(root)
    program, channels, used = linearize(root, len(group.inputs))
    program = _with_accumulator(program, "int32" if integer else "float32")
    tensors = (group.tensors[0], *(group.tensors[i] for i in used))
    spec = replace(geometry, inputs=tensors, result=group.result(output), program=program, output=output)
    bias = np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32) if integer else bias.astype(np.float32)
    constants = [("weight", weight), ("bias", bias), *(("channel", c) for c in channels), *pad]
    return group.order(spec, [group.inputs[0], *(group.inputs[i] for i in used)], constants)


def _same_everywhere(zero_point) -> int | None:
    """The zero point of all channels, or None where they differ."""
    values = np.unique(zero_point)
    return int(values[0]) if len(values) == 1 else None


def _channels_it_can_read(flow, call: relax.Call) -> Quantized | None:
    """Data with quantisation per channel, if the convolution can take it in.

    Scales of their own take a depthwise convolution, zero points alone one that does not pad, or pads an image.
    """
    quantized = dequantized_by_channel(flow, call.args[0]) if op_name(call) == "nn.conv2d" else None
    if quantized is None or is_depthwise(call):
        return quantized
    pads = any(_ints(call.attrs.padding)) and not can_pad_by_channel(call)
    if pads or len(np.unique(quantized.scale)) > 1:
        return None
    return replace(quantized, scale=float(quantized.scale[0]))


def _add_padded_image(group, quantized: Quantized, padding: tuple[int, int, int, int]) -> None:
    """Order a kernel that pads an image with its channels' zero points, and register its result as the data."""
    top, left, bottom, right = padding
    n, channels, height, width = shape_of(quantized.source)
    shape = (n, channels, height + top + bottom, width + left + right)
    data, result = Tensor((n, channels, height, width), "uint8", 0), Tensor(shape, "uint8", 0)
    spec = Window2d(
        group.name, (data,), result, RAW, raw_output("uint8"), start=(-top, -left), step=(1, 1), pad_value=None
    )
    name, pad = f"{group.exit.name}_image", ("pad", quantized.zero_point.astype(np.uint8))
    group.inputs.append(
        group.new.emit(kernel_call(spec, [group.new.translate(quantized.source)], [pad], name, shape), name)
    )
    group.tensors.append(result)


def _with_accumulator(program: Program, dtype: str) -> Program:
    operands = tuple(Operand("acc", dtype) if operand.kind == "acc" else operand for operand in program.operands)
    return Program(operands, program.steps)


def _single_input(group, source):
    """Register the anchor's data; returns (zero point, value of the accumulator as an expression)."""
    quantized = dequantized(group.flow, source)
    if quantized is None:
        group.add_input(source, "float32", shape_of(source))
        return 0, ACC
    group.add_input(quantized.source, quantized.dtype, shape_of(source))
    return quantized.zero_point, apply("mul", ACC, number(quantized.scale))


def _finish(group, kind, value, **fields) -> relax.Call:
    root, output = group.output(group.epilogue(value))
    program, channels, used = linearize(root, len(group.inputs))
    tensors = (group.tensors[0], *(group.tensors[i] for i in used))
    spec = kind(group.name, tensors, group.result(output), _with_accumulator(program, "float32"), output, **fields)
    return group.order(spec, [group.inputs[0], *(group.inputs[i] for i in used)], [("channel", c) for c in channels])


def pool(group) -> relax.Call:
    """Max and average pooling, global pooling included."""
    call = group.group.anchor.value
    zero_point, value = _single_input(group, call.args[0])
    if op_name(call) == "nn.adaptive_avg_pool2d":
        return _finish(group, Pool2d, value, mode="avg", kernel=shape_of(call.args[0])[2:], zero_point=zero_point)
    return _finish(
        group,
        Pool2d,
        value,
        mode="max" if op_name(call) == "nn.max_pool2d" else "avg",
        kernel=_ints(call.attrs.pool_size),
        strides=_ints(call.attrs.strides),
        padding=_ints(call.attrs.padding),
        dilation=_ints(call.attrs.dilation),
        count_include_pad=bool(call.attrs.count_include_pad),
        zero_point=zero_point,
    )


def normalisation(group) -> relax.Call:
    """Local response normalisation; alpha in units of the data, so that a kernel sums squares of integers."""
    call = group.group.anchor.value
    zero_point, value = _single_input(group, call.args[0])
    quantized = dequantized(group.flow, call.args[0])
    scale = 1.0 if quantized is None else quantized.scale
    return _finish(
        group,
        Lrn,
        value,
        size=int(call.attrs["size"]),
        before=int(call.attrs["before"]),
        alpha=float(call.attrs["alpha"]) * scale**2,
        beta=float(call.attrs["beta"]),
        bias=float(call.attrs["bias"]),
        zero_point=zero_point,
    )


def resize(group) -> relax.Call:
    """Nearest and bilinear resize."""
    call = group.group.anchor.value
    zero_point, value = _single_input(group, call.args[0])
    method = "linear" if str(call.attrs.method) == "linear" else "nearest"
    mode, rounding = str(call.attrs.coordinate_transformation_mode), str(call.attrs.rounding_method)
    source, target = shape_of(call.args[0])[2:], shape_of(call)[2:]
    rows, cols = (axis_table(s, t, method, mode, rounding) for s, t in zip(source, target, strict=True))
    return _finish(group, Resize2d, value, method=method, rows=rows, cols=cols, zero_point=zero_point)


RAW = Program((), ())


def raw_output(dtype: str) -> Output:
    """Everything the dtype holds, as it is."""
    if dtype == "float32":
        return Output("float32")
    info = np.iinfo(dtype)
    return Output(dtype, 0, info.min, info.max)


def gather_channels(group, sources, table) -> relax.Call:
    """Concat and channel slices: integers when every source is quantised and so is the result, else as they are."""
    quantized = [dequantized(group.flow, source) for source in sources]
    dtype = dtype_of(group.exit)
    if group.group.quantize is not None and all(q is not None and q.dtype == "uint8" for q in quantized):
        scale, zero_point = quantization_of(group.group.quantize.value)
        output = Output("uint8", zero_point, -zero_point, 255 - zero_point)
        for source, q in zip(sources, quantized, strict=True):
            group.add_input(q.source, q.dtype, shape_of(source))
        scales = tuple(float(np.float32(q.scale / scale)) for q in quantized)
        return _gather(group, table, output, scales, tuple(q.zero_point for q in quantized))
    for source in sources:
        group.add_input(source, dtype, shape_of(source))
    scales, zeros = (1.0,) * len(sources), (0,) * len(sources)
    moved = _gather(group, table, raw_output(dtype), scales, zeros)
    return _quantized_after(group, moved)


def _gather(group, table, output, scales, zero_points) -> relax.Call:
    spec = ChannelGather(
        group.name,
        tuple(group.tensors),
        group.result(output),
        RAW,
        output,
        source=table,
        scales=scales,
        zero_points=zero_points,
    )
    return group.order(spec, group.inputs, [])


def _quantized_after(group, moved: relax.Call):
    """A mover that could not take its group's quantize in: leave the quantize as an operator of its own."""
    if group.group.quantize is None:
        return moved
    call = group.group.quantize.value
    float_result = group.new.emit(moved, group.exit.name)
    quantize = group.new.typed(relax.Call(call.op, [float_result, *call.args[1:]], call.attrs))
    return conversion(quantize, group.name, group.exit.name)


def concat(group) -> relax.Call:
    """concat along the channels."""
    fields = list(group.group.anchor.value.args[0].fields)
    table = tuple((i, c) for i, field in enumerate(fields) for c in range(shape_of(field)[1]))
    return gather_channels(group, fields, table)


def strided_slice(group) -> relax.Call:
    """A slice of channels, or of rows and columns."""
    call = group.group.anchor.value
    ranges = slice_ranges(call)
    if set(ranges) <= {1}:
        begin, step = ranges.get(1, (0, 1))
        table = tuple((0, begin + i * step) for i in range(shape_of(call)[1]))
        return gather_channels(group, [call.args[0]], table)
    begins, steps = zip(ranges.get(2, (0, 1)), ranges.get(3, (0, 1)), strict=True)
    return _window(group, call.args[0], start=begins, step=steps, real_pad=0.0)


def take(group) -> relax.Call:
    """A constant selection of channels."""
    source, order = group.group.anchor.value.args
    channels = shape_of(source)[1]
    return gather_channels(group, [source], tuple((0, int(c) % channels) for c in const_value(order)))


def pad(group) -> relax.Call:
    """Constant padding of rows and columns, or zeros in front of and behind the channels."""
    call = group.group.anchor.value
    widths = _ints(call.attrs.pad_width)
    if any(widths[2:4]):
        copied = tuple((0, c) for c in range(shape_of(call.args[0])[1]))
        return gather_channels(group, [call.args[0]], (NOTHING,) * widths[2] + copied + (NOTHING,) * widths[3])
    return _window(
        group, call.args[0], start=(-widths[4], -widths[6]), step=(1, 1), real_pad=float(call.attrs.pad_value)
    )


def _window(group, source, start, step, real_pad: float):
    quantized, store = dequantized(group.flow, source), group.group.quantize
    same = (
        quantized is not None
        and store is not None
        and quantization_of(store.value) == (quantized.scale, quantized.zero_point)
    )
    if same and quantized.dtype == dtype_of(store.value):
        dtype, info = quantized.dtype, np.iinfo(quantized.dtype)
        value = float(np.clip(np.rint(real_pad / quantized.scale) + quantized.zero_point, info.min, info.max))
        group.add_input(quantized.source, dtype, shape_of(source))
    else:
        dtype, value = dtype_of(group.exit), real_pad
        group.add_input(source, dtype, shape_of(source))
    result = Tensor(logical_shape(group.shape), dtype, 0)
    spec = Window2d(
        group.name, tuple(group.tensors), result, RAW, raw_output(dtype), start=start, step=step, pad_value=value
    )
    moved = group.order(spec, group.inputs, [])
    return moved if same else _quantized_after(group, moved)


BUILDERS = {
    "nn.conv2d": convolution,
    "nn.conv2d_transpose": convolution,
    "nn.max_pool2d": pool,
    "nn.avg_pool2d": pool,
    "nn.adaptive_avg_pool2d": pool,
    LRN: normalisation,
    "image.resize2d": resize,
    "concat": concat,
    "strided_slice": strided_slice,
    "nn.pad": pad,
    "take": take,
}

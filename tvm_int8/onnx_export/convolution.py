"""Convolutions, dense layers and matrix products."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_int8.passes.expressions import const_value, op_name, shape_of

from .linear_layer import LinearLayer, linear_layer
from .quantize import behind_idle_pair
from .registry import relax_op
from .writer import OnnxWriter

_LAYOUTS = {
    "nn.conv2d": ("NCHW", "OIHW"),
    "nn.conv2d_transpose": ("NCHW", "IOHW"),
    "nn.conv3d": ("NCDHW", "OIDHW"),
}


@relax_op(*_LAYOUTS)
def convolution(out: OnnxWriter, call: relax.Call) -> None:
    """Conv or ConvTranspose with its bias; Gemm where the layer is a dense one."""
    found = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if found != (expected := _LAYOUTS[op_name(call)]):
        raise out.error(f"has the layouts {' and '.join(found)}", " and ".join(expected), "convert the layout")
    layer = linear_layer(out.flow, out.var)
    out.absorb(layer.absorbed)
    if layer.is_dense:
        _dense(out, layer)
        return
    attributes = {
        "kernel_shape": list(shape_of(call.args[1])[2:]),
        "strides": _ints(call.attrs.strides),
        "pads": _ints(call.attrs.padding),
        "dilations": _ints(call.attrs.dilation),
        "group": int(call.attrs.groups),
    }
    op_type = "Conv"
    if op_name(call) == "nn.conv2d_transpose":
        op_type, attributes["output_padding"] = "ConvTranspose", _ints(call.attrs.output_padding)
    weight = out.tensor(call.args[1], "weight")
    out.emit(op_type, call.args[0], weight, _bias(out, layer), into=layer.result, **attributes)


def _ints(values) -> list[int]:
    return [int(value) for value in values]


def _bias(out: OnnxWriter, layer: LinearLayer) -> str | None:
    """The bias as an initialiser, through DequantizeLinear where it is int32."""
    if layer.bias is None:
        return None
    if layer.bias_scale is None:
        return out.constant(layer.bias, "bias")
    names = out.constant(layer.bias, "bias_quantized"), out.constant(layer.bias_scale, "bias_scale")
    axis = {"axis": 0} if layer.bias_scale.ndim else {}
    return out.emit("DequantizeLinear", *names, suffix="bias", name=f"{out.var.name}_bias", **axis)


def _dense(out: OnnxWriter, layer: LinearLayer) -> None:
    """Gemm on the flattened map, whose weight [M, K] is the kernel's [M, C, H, W]."""
    data = _matrix(out, layer.call.args[0])
    out.emit("Gemm", data, _matrix_weight(out, layer.call.args[1]), _bias(out, layer), into=layer.result, transB=1)


def _matrix(out: OnnxWriter, data: relax.Expr) -> relax.Expr | str:
    """[N, K]: what was reshaped to a map for the convolution, or the flattened map."""
    source = out.flow.value(behind_idle_pair(out.flow, data))
    if op_name(source) == "reshape" and len(shape_of(source.args[0])) == 2:
        return source.args[0]
    return out.emit("Flatten", data, suffix="flattened", axis=1)


def _matrix_weight(out: OnnxWriter, weight: relax.Expr) -> str:
    value = out.flow.value(weight)
    if op_name(value) != "dequantize":
        return out.constant(_rows(const_value(value)), "weight")
    array, scale, zero_point = (const_value(arg) for arg in value.args)
    roles = ("weight_quantized", "weight_scale", "weight_zero_point")
    per_channel = scale.size > 1
    arrays = (_rows(array), *((scale, zero_point) if per_channel else (scale.reshape(()), zero_point.reshape(()))))
    names = [out.constant(array, role) for array, role in zip(arrays, roles, strict=True)]
    axis = {"axis": 0} if per_channel else {}
    return out.emit("DequantizeLinear", *names, suffix="weight", name=f"{out.var.name}_weight", **axis)


def _rows(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(len(kernel), -1)


@relax_op("matmul")
def matmul(out: OnnxWriter, call: relax.Call) -> None:
    """MatMul."""
    out.emit("MatMul", *call.args)

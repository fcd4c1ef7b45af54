"""Convolutions, dense layers and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_int8.passes.expressions import const_value, op_name, shape_of
from tvm_int8.passes.quantization_parameters import quantization_of
from tvm_int8.passes.quantized_values import real_weight

from .linear_layer import Integers, LinearLayer, linear_layer
from .quantize import behind_idle_pair
from .registry import relax_op
from .writer import OnnxWriter

_LAYOUTS = {
    "nn.conv2d": ("NCHW", "OIHW"),
    "nn.conv2d_transpose": ("NCHW", "IOHW"),
    "nn.conv3d": ("NCDHW", "OIDHW"),
}
_ROLES = ("scale", "zero_point")


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
    attributes: dict[str, Any] = {
        "kernel_shape": list(shape_of(call.args[1])[2:]),
        "strides": _ints(call.attrs.strides),
        "pads": _ints(call.attrs.padding),
        "dilations": _ints(call.attrs.dilation),
        "group": int(call.attrs.groups),
    }
    op_type = "Conv"
    if op_name(call) == "nn.conv2d_transpose":
        op_type, attributes["output_padding"] = "ConvTranspose", _ints(call.attrs.output_padding)
    if layer.integers is None:
        weight, bias = out.tensor(call.args[1], "weight"), _float_bias(out, layer)
    else:
        weight, bias = _integer_parameters(out, layer.integers, layer.integers.weight)
    out.emit(op_type, call.args[0], weight, bias, into=layer.result, **attributes)


def _ints(values) -> list[int]:
    return [int(value) for value in values]


def _float_bias(out: OnnxWriter, layer: LinearLayer) -> str | None:
    return None if layer.bias is None else out.constant(layer.bias, "bias")


def _integer_parameters(out: OnnxWriter, integers: Integers, weight: np.ndarray) -> tuple[str, str]:
    """Weight, in the shape given, and bias through DequantizeLinear."""
    return (
        _dequantized(out, "weight", weight, integers.weight_scale),
        _dequantized(out, "bias", integers.bias, integers.bias_scale),
    )


def _dequantized(out: OnnxWriter, role: str, array: np.ndarray, scale: np.ndarray) -> str:
    """A symmetric constant, quantised along its first axis or as a whole."""
    names = [out.constant(array, f"{role}_quantized"), out.constant(scale, f"{role}_scale")]
    names.append(out.constant(np.zeros(scale.shape, array.dtype), f"{role}_zero_point"))
    axis = {"axis": 0} if scale.ndim else {}
    return out.emit("DequantizeLinear", *names, suffix=role, name=f"{out.var.name}_{role}", **axis)


def _dense(out: OnnxWriter, layer: LinearLayer) -> None:
    """Gemm on the flattened map, whose weight [M, K] is the kernel's [M, C, H, W]."""
    data, weight = _matrix(out, layer.call.args[0]), layer.call.args[1]
    if layer.integers is not None:
        parameters = _integer_parameters(out, layer.integers, _rows(layer.integers.weight))
    else:
        parameters = out.constant(_rows(real_weight(out.flow, weight)), "weight"), _float_bias(out, layer)
    out.emit("Gemm", data, *parameters, into=layer.result, transB=1)


def _rows(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(len(kernel), -1)


def _matrix(out: OnnxWriter, data: relax.Expr) -> relax.Expr | str:
    """[N, K]: what was reshaped to a map for the convolution, or the flattened map.

    The flattened map is quantised once more, which changes nothing and shows runtimes that the layer reads integers.
    """
    source = out.flow.value(behind_idle_pair(out.flow, data))
    if op_name(source) == "reshape" and len(shape_of(source.args[0])) == 2:
        return source.args[0]
    flat = out.emit("Flatten", data, suffix="flattened", axis=1)
    quantized = out.flow.value(data)
    if op_name(quantized) != "dequantize" or quantization_of(quantized) is None:
        return flat
    parameters = [
        out.constant(const_value(arg).reshape(()), role) for arg, role in zip(quantized.args[1:], _ROLES, strict=True)
    ]
    integers = out.emit("QuantizeLinear", flat, *parameters, suffix="flattened_quantized")
    return out.emit("DequantizeLinear", integers, *parameters, suffix="flattened_dequantized")


@relax_op("matmul")
def matmul(out: OnnxWriter, call: relax.Call) -> None:
    """MatMul."""
    out.emit("MatMul", *call.args)

"""WrapIntegers: operators on 8-bit integers become operators on reals, between dequantize and quantize.

    max_pool2d(q)                  ->   quantize(max_pool2d(dequantize(q, 1, 0)), 1, 0)
    image.resize2d(q, "linear")    ->   quantize(floor(image.resize2d(dequantize(q, 1, 0), "linear")), 1, 0)

Models in ONNX Runtime's operator format (QLinearConv, QLinearAdd, ...) let everything that selects elements work on
the integers themselves. Which scale these have does not matter to a selection, so 1 serves. A bilinear resize rounds
towards zero there, as ONNX Runtime does.

Requires   nothing.
Ensures    reshape, permute_dims, slices, take, concat, pad, max_pool2d, relu and resize2d of uint8 or int8 are QDQ, so
           that what follows knows one form only (MoveIntegers takes off what moves bytes after all).
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Rebuilder, rebuild
from .expressions import Expr, constant, dtype_of, op_name
from .quantization_parameters import INTEGERS

SELECTING = (
    *("reshape", "permute_dims", "strided_slice", "take", "concat", "nn.pad", "nn.max_pool2d", "nn.relu"),
    "image.resize2d",
)


@tvm.transform.module_pass(opt_level=0, name="WrapIntegers")
class WrapIntegers:
    """Put dequantize and quantize around operators on 8-bit integers."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module in QDQ form."""
        return rebuild(mod, _rewrite)


def _rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
    if op_name(value) not in SELECTING or dtype_of(value) not in INTEGERS:
        return None
    dtype, name = dtype_of(value), binding.var.name
    data, *rest = value.args
    if isinstance(data, relax.Tuple):
        data = relax.Tuple([_real(field) for field in data.fields])
    else:
        data = _real(data)
    real = new.emit(relax.Call(value.op, [data, *rest], value.attrs, value.ty_args), f"{name}_real")
    if op_name(value) == "image.resize2d" and str(value.attrs.method) != "nearest_neighbor":
        real = new.emit(_towards_zero(real, dtype), f"{name}_whole")
    return relax.op.quantize(real, *_unit(dtype), axis=-1, out_dtype=dtype)


def _real(integers: Expr) -> Expr:
    return relax.op.dequantize(integers, *_unit(dtype_of(integers)), axis=-1)


def _unit(dtype: str) -> tuple[Expr, Expr]:
    """Scale 1 and zero point 0."""
    return constant(np.float32(1)), constant(np.zeros((), dtype))


def _towards_zero(real: Expr, dtype: str) -> Expr:
    if dtype == "uint8":
        return relax.op.floor(real)
    zero = constant(np.float32(0))
    return relax.op.add(relax.op.floor(relax.op.maximum(real, zero)), relax.op.ceil(relax.op.minimum(real, zero)))

"""DenseToConv2d: a dense layer is a convolution whose kernel covers the whole map.

    matmul(x[N, K], w[K, M])  ->  reshape(conv2d(reshape(x, [N, K, 1, 1]), w^T[M, K, 1, 1]), [N, M])
    matmul(reshape(x[N, C, H, W], [N, C*H*W]), w[K, M])   ->  reshape(conv2d(x, w^T[M, C, H, W]), [N, M])

Requires   constant weights, or a dequantize of a constant (imported QDQ models).
Ensures    no matmul of an activation [N, K] with a constant [K, M] is left; flattening needs no copy in the packed
           layout.
Not handled   matmul of higher rank, or of two activations: islands.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Rebuilder, rebuild
from .expressions import Expr, const_value, constant, op_name, shape_of


@tvm.transform.module_pass(opt_level=0, name="DenseToConv2d")
class DenseToConv2d:
    """Rewrite dense layers as convolutions."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module without dense layers."""
        return rebuild(mod, _rewrite)


def _rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
    if op_name(value) != "matmul" or len(shape_of(value.args[0])) != 2 or len(shape_of(value.args[1])) != 2:
        return None
    data = _map_behind(value.args[0], new)
    n, *inner = shape_of(data)
    weight = _conv_weight(new.value(value.args[1]), inner if len(inner) == 3 else [*inner, 1, 1])
    if weight is None:
        return None
    if len(inner) == 1:
        data = new.emit(relax.op.reshape(data, (n, *inner, 1, 1)), f"{binding.var.name}_map")
    conv = new.emit(relax.op.nn.conv2d(data, _bound(weight, new, binding.var.name)), f"{binding.var.name}_conv")
    return relax.op.reshape(conv, shape_of(value))


def _bound(weight: Expr, new: Rebuilder, name: str) -> Expr:
    return new.emit(weight, f"{name}_weight") if isinstance(weight, relax.Call) else weight


def _map_behind(data: Expr, new: Rebuilder) -> Expr:
    """The [N, C, H, W] tensor that `data` [N, C*H*W] flattens, or `data` itself."""
    value = new.value(data)
    if op_name(value) != "reshape":
        return data
    source = value.args[0]
    return source if len(shape_of(source)) == 4 and shape_of(source)[0] == shape_of(data)[0] else data


def _conv_weight(weight: Expr, inner: list[int]) -> Expr | None:
    """[K, M] -> [M, C, H, W], through a dequantize."""

    def turned(array: np.ndarray) -> Expr:
        return constant(np.ascontiguousarray(array.T).reshape(array.shape[1], *inner))

    array = const_value(weight)
    if array is not None:
        return turned(array)
    if op_name(weight) != "dequantize":
        return None
    array, scale, zero_point = weight.args
    axis = int(weight.attrs.axis) % 2
    if const_value(array) is None or (const_value(scale).size > 1 and axis != 1):
        return None
    return relax.op.dequantize(turned(const_value(array)), scale, zero_point, axis=0)

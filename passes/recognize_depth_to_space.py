"""RecognizeDepthToSpace: reshape, transpose, reshape that make pixels of channels become one kernel order.

    x -> reshape [N, C, r, r, H, W] -> permute_dims (0, 1, 4, 2, 5, 3) -> reshape [N, C, H * r, W * r]
    x -> reshape [N, r, r, C, H, W] -> permute_dims (0, 3, 4, 1, 5, 2) -> reshape [N, C, H * r, W * r]
        ->   tvm_int8.kernel(x; DepthToSpace spec)

Requires   MoveIntegers: what moves integers reads them; nobody else reads what is in between.
Ensures    the sub-pixel layer of super-resolution networks needs no plain copy of its input.
Not        the second order where C is no multiple of sixteen.
Source     Shi et al. 2016 (arXiv:1609.05158); the two orders are ONNX's CRD and DCR.
"""

from __future__ import annotations

import tvm

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import LANES, DepthToSpace, Tensor

from .anchors import RAW, raw_output
from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, dtype_of, op_name, shape_of
from .groups import logical_shape
from .order_kernels import layer_name
from .quantization_parameters import any_quantization_of

_ORDERS: dict[tuple[int, ...], bool] = {(0, 1, 4, 2, 5, 3): True, (0, 3, 4, 1, 5, 2): False}
"""Axes of the transpose to whether a channel's pixels lie side by side."""


@tvm.transform.module_pass(opt_level=0, name="RecognizeDepthToSpace")
class RecognizeDepthToSpace:
    """Order a kernel for every depth-to-space."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with depth-to-space recognised."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            found = _depth_to_space(binding.value, flow)
            if found is None:
                return None
            source, factor, adjacent = found
            var, shape, dtype = binding.var, shape_of(binding.var), dtype_of(binding.var)
            layer = layer_name(flow, binding.value.args[0])  # an integer result is called after its reader
            data, result = Tensor(logical_shape(shape_of(source)), dtype, 0), Tensor(logical_shape(shape), dtype, 0)
            spec = DepthToSpace(layer, (data,), result, RAW, raw_output(dtype), factor, adjacent)
            return kernel_call(spec, [new.translate(source)], [], var.name, shape, _stored(var, flow))

        return rebuild(mod, rewrite)


def _stored(var: Var, flow: Dataflow):
    readers = (user.value for user in flow.consumers[var])
    return next((any_quantization_of(call) for call in readers if op_name(call) == "dequantize"), None)


def _depth_to_space(last: Expr, flow: Dataflow) -> tuple[Expr, int, bool] | None:
    """(source, factor, whether a channel's pixels are adjacent channels) when `last` ends one."""
    permute, first = _behind(last, "reshape", flow), None
    if permute is not None and op_name(permute) == "permute_dims" and permute.attrs.axes is not None:
        first = _behind(permute, "permute_dims", flow)
    if first is None or op_name(first) != "reshape" or dtype_of(last) not in ("float32", "uint8", "int8"):
        return None
    source, split = first.args[0], shape_of(first)
    adjacent = _ORDERS.get(tuple(int(axis) for axis in permute.attrs.axes))
    if adjacent is None or len(shape_of(source)) != 4 or len(split) != 6:
        return None
    n, channels, height, width = shape_of(source)
    factor = split[2]
    depth = channels // factor**2
    inner = (depth, factor, factor) if adjacent else (factor, factor, depth)
    if not adjacent and depth % LANES:
        return None
    whole = split == (n, *inner, height, width) and shape_of(last) == (n, depth, height * factor, width * factor)
    return (source, factor, adjacent) if whole and isinstance(source, Var) else None


def _behind(call: Expr, name: str, flow: Dataflow) -> Expr | None:
    """What produces the data of `call`, an operator `name`, if nobody else reads it."""
    if op_name(call) != name or not isinstance(call.args[0], Var) or call.args[0] not in flow.producer:
        return None
    return flow.value(call.args[0]) if flow.only_consumer(call.args[0]) is not None else None

"""UnsignedActivations: int8 activations of imported QDQ models become uint8, exactly.

    dequantize(quantize(x, s, z, int8), s, z)   ->   dequantize(quantize(x, s, z + 128, uint8), s, z + 128)
    int8 input x                                ->   quantize(dequantize(x, 1, 0), 1, 128, uint8) for those who read it
    int8 output                                 ->   quantize(dequantize(q, 1, 128), 1, 0, int8) of the uint8 tensor q

scale * (q - z) = scale * ((q + 128) - (z + 128)), and both saturate at the same reals.  Weights, int8 constants, stay.

Requires   WrapIntegers (only dequantizes read integers); constant zero points.
Ensures    every quantize delivers uint8 and every dequantize of an activation reads it, but for one in front of each
           int8 output and one behind each int8 input.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, constant, dtype_of, op_name
from .quantization_parameters import quantization_of

SHIFT = 128


@tvm.transform.module_pass(opt_level=0, name="UnsignedActivations")
class UnsignedActivations:
    """Shift int8 activations to uint8."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with unsigned activations."""
        flow = Dataflow(mod)
        stored = {binding.var for binding in flow.bindings if _is_shiftable(binding, flow)}
        inputs = {var for var in flow.params if _is_foreign(var, flow)}
        unsigned: dict[Var, Var] = {}  # what dequantizes read instead

        def rewrite(binding, value: Expr, new: Rebuilder) -> Expr | None:
            if binding.var in stored:
                shifted = relax.op.quantize(value.args[0], *_shifted(value), int(value.attrs.axis), "uint8")
                if not flow.is_output(binding.var):
                    return shifted
                unsigned[binding.var] = new.emit(shifted, f"{binding.var.name}_unsigned")
                return _converted(unsigned[binding.var], SHIFT, 0, "int8")
            if op_name(binding.value) != "dequantize":
                return None
            source = binding.value.args[0]
            if source in inputs and source not in unsigned:
                unsigned[source] = new.emit(_converted(source, 0, SHIFT, "uint8"), f"{source.name}_unsigned")
            if source not in stored and source not in inputs:
                return None
            return relax.op.dequantize(unsigned.get(source, value.args[0]), *_shifted(value), int(value.attrs.axis))

        return rebuild(mod, rewrite)


def _shifted(call: relax.Call) -> tuple[Expr, Expr]:
    """Scale, and the zero point of uint8."""
    zero_point = const_value(call.args[2]).astype(np.int16) + SHIFT
    return call.args[1], constant(zero_point.astype(np.uint8))


def _converted(integers: Var, zero_point: int, new_zero_point: int, dtype: str) -> Expr:
    """The same numbers minus their zero point, in another type."""
    one = constant(np.float32(1))
    zero_points = (constant(np.array(z, d)) for z, d in ((zero_point, dtype_of(integers)), (new_zero_point, dtype)))
    real = relax.op.dequantize(integers, one, next(zero_points), -1)
    return relax.op.quantize(real, one, next(zero_points), -1, dtype)


def _is_int8(var: Var) -> bool:
    return isinstance(var.ty, relax.TensorType) and dtype_of(var) == "int8"


def _is_shiftable(binding, flow: Dataflow) -> bool:
    """An int8 quantize that is not just the conversion of an output."""
    call, var = binding.value, binding.var
    if op_name(call) != "quantize" or not _is_int8(var) or const_value(call.args[2]) is None:
        return False
    return not _is_conversion(call, flow, SHIFT, 0) and _only_dequantized(var, flow)


def _is_foreign(var: Var, flow: Dataflow) -> bool:
    """An int8 input that dequantizes read, others than that of its conversion."""
    if not _is_int8(var) or not _only_dequantized(var, flow):
        return False
    readers = (flow.only_consumer(user.var) for user in flow.consumers[var])
    return not all(reader is not None and _is_conversion(reader.value, flow, 0, SHIFT) for reader in readers)


def _is_conversion(call: Expr, flow: Dataflow, zero_point: int, new_zero_point: int) -> bool:
    """Whether this is what `_converted` writes."""
    if op_name(call) != "quantize" or quantization_of(call) != (1.0, new_zero_point):
        return False
    source = flow.value(call.args[0])
    return op_name(source) == "dequantize" and quantization_of(source) == (1.0, zero_point)


def _only_dequantized(var: Var, flow: Dataflow) -> bool:
    """Whether only dequantizes with known zero points read a tensor."""
    return all(
        op_name(user.value) == "dequantize" and const_value(user.value.args[2]) is not None
        for user in flow.consumers[var]
    )

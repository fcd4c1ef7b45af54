"""UnsignedActivations: int8 activations of imported QDQ models become uint8, exactly.

    dequantize(quantize(x, s, z, int8), s, z)   ->   dequantize(quantize(x, s, z + 128, uint8), s, z + 128)

scale * (q - z) = scale * ((q + 128) - (z + 128)), and both saturate at the same reals.  Weights, int8 constants, stay.

Requires   constant scales and zero points, per tensor or per channel.
Ensures    every quantize delivers uint8, unless its integers are a model output.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, const_value, constant, dtype_of, op_name
from .quantization_parameters import any_quantization_of

SHIFT = 128


@tvm.transform.module_pass(opt_level=0, name="UnsignedActivations")
class UnsignedActivations:
    """Shift int8 activations to uint8."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with unsigned activations."""
        flow = Dataflow(mod)
        shifted = {binding.var for binding in flow.bindings if _is_private_int8(binding, flow)}

        def rewrite(binding, value: Expr, _new: Rebuilder) -> Expr | None:
            if binding.var in shifted:
                return relax.op.quantize(value.args[0], *_shifted(value), int(value.attrs.axis), "uint8")
            if op_name(binding.value) == "dequantize" and binding.value.args[0] in shifted:
                return relax.op.dequantize(value.args[0], *_shifted(value), int(value.attrs.axis))
            return None

        return rebuild(mod, rewrite)


def _shifted(call: relax.Call) -> tuple[Expr, Expr]:
    """Scale, and the zero point of uint8."""
    zero_point = const_value(call.args[2]).astype(np.int16) + SHIFT
    return call.args[1], constant(zero_point.astype(np.uint8))


def _is_private_int8(binding, flow: Dataflow) -> bool:
    """An int8 quantize that only dequantizes of the same kind read."""
    call, var = binding.value, binding.var
    if (
        op_name(call) != "quantize"
        or dtype_of(call) != "int8"
        or any_quantization_of(call) is None
        or flow.is_output(var)
    ):
        return False
    return all(
        op_name(user.value) == "dequantize" and any_quantization_of(user.value) is not None
        for user in flow.consumers[var]
    )

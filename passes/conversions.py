"""Quantize and dequantize that stand alone, as element-wise kernel orders."""

from __future__ import annotations

from tvm import relax

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import Elementwise, Operand, Tensor

from .epilogue_expression import dequantized_tensor, linearize, tensor, with_output
from .expressions import dtype_of, op_name, shape_of
from .groups import is_packable, logical_shape
from .quantization_parameters import any_quantization_of
from .quantized_values import Quantized


def conversion(call: relax.Call, layer: str, name: str, read: Quantized | None = None) -> relax.Call | None:
    """The order for a quantize or dequantize of a packable tensor; None where there is no kernel.

    `read` is what a quantize's operand is a dequantize of, in terms of the same function: integers become integers.
    """
    found = any_quantization_of(call)
    if found is None or not is_packable(call):
        return None
    if op_name(call) == "dequantize":
        read = Quantized(call.args[0], dtype_of(call.args[0]), *found)
    source = call.args[0] if read is None else read.source
    if dtype_of(source) not in ("float32", "uint8", "int8"):
        return None
    loaded = tensor(0, Operand("tensor"))
    if read is not None:
        loaded = dequantized_tensor(0, "tensor", read.dtype, read.scale, read.zero_point)
    stored = found if op_name(call) == "quantize" else None
    root, output = with_output(loaded, dtype_of(call), *(stored or (1.0, 0)))
    shape = logical_shape(shape_of(call))
    program, channels, _ = linearize(root, 1)
    spec = Elementwise(layer, (Tensor(shape, dtype_of(source), 0),), Tensor(shape, dtype_of(call), 0), program, output)
    return kernel_call(spec, [source], [("channel", c) for c in channels], name, shape_of(call), stored)

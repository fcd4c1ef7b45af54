"""Quantize and dequantize that stand alone, as element-wise kernel orders."""

from __future__ import annotations

from tvm import relax

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import Elementwise, Operand, Tensor

from .epilogue_expression import dequantized_tensor, linearize, tensor, with_output
from .expressions import dtype_of, op_name, shape_of
from .groups import is_packable, logical_shape
from .quantization_parameters import any_quantization_of


def conversion(call: relax.Call, layer: str, name: str) -> relax.Call | None:
    """The order for a quantize or dequantize of a packable tensor; None where there is no kernel."""
    source, found = call.args[0], any_quantization_of(call)
    if found is None or not is_packable(call) or dtype_of(source) not in ("float32", "uint8", "int8"):
        return None
    scale, zero_point = found
    if op_name(call) == "quantize":
        root, output = with_output(tensor(0, Operand("tensor")), dtype_of(call), scale, zero_point)
    else:
        loaded = dequantized_tensor(0, "tensor", dtype_of(source), scale, zero_point)
        root, output = with_output(loaded, "float32", 1.0, 0)
    stored = found if op_name(call) == "quantize" else None
    shape = logical_shape(shape_of(call))
    program, channels, _ = linearize(root, 1)
    spec = Elementwise(layer, (Tensor(shape, dtype_of(source), 0),), Tensor(shape, dtype_of(call), 0), program, output)
    return kernel_call(spec, [source], [("channel", c) for c in channels], name, shape_of(call), stored)

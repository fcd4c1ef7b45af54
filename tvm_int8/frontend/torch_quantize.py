"""`torch.ops.quantized_decomposed` in exported programs (PT2E): quantize and dequantize, per tensor and per channel.

    quantize_per_tensor(x, scale, zero_point, quant_min, quant_max, dtype)   ->   quantize(clip(x, low, high), ...)

The clip is there where quant_min .. quant_max is narrower than the dtype: 0..127 for CPUs whose products of 8 bits
saturate, -127..127 for weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
from tvm import relax

_OVERLOADS = ("default", "tensor", "tensor2")


def register_quantization() -> None:
    """Make these operators known to PyTorch, without which programs that hold them cannot be read."""
    with contextlib.suppress(ImportError):  # of other versions of PyTorch
        import torch.ao.quantization.fx._decomposed  # noqa: F401


def quantization_converters(importer) -> dict[str, Callable]:
    """Handlers for the operators' names, of the kind TVM's importer has in its table."""

    def quantize(node, axis: int, rest) -> relax.Var:
        scale, zero_point, low, high, dtype = rest
        name = str(dtype).removeprefix("torch.")
        x, emit = importer.env[node.args[0]], importer.block_builder.emit
        scale, zero_point = _parameter(importer, scale, "float32"), _parameter(importer, zero_point, name)
        info = np.iinfo(name)
        if (low, high) != (info.min, info.max):
            x = emit(_clipped(x, scale, zero_point, low, high, axis))
        return emit(relax.op.quantize(x, scale, zero_point, axis, name))

    def dequantize(node, axis: int, rest) -> relax.Var:
        scale, zero_point, *_ = rest
        x, emit = importer.env[node.args[0]], importer.block_builder.emit
        scale = _parameter(importer, scale, "float32")
        return emit(relax.op.dequantize(x, scale, _parameter(importer, zero_point, str(x.ty.dtype)), axis))

    def per_tensor(convert):
        return lambda node: convert(node, -1, node.args[1:])

    def per_channel(convert):
        def converted(node):
            scale, zero_point, axis, *rest = node.args[1:]
            return convert(node, axis, (scale, zero_point, *rest))

        return converted

    found: dict[str, Callable] = {}
    for kind, convert in (("quantize", quantize), ("dequantize", dequantize)):
        found |= {f"{kind}_per_tensor.{overload}": per_tensor(convert) for overload in _OVERLOADS}
        found[f"{kind}_per_channel.default"] = per_channel(convert)
    return found


def _parameter(importer, value, dtype: str) -> relax.Expr:
    """A scale or zero point: a number, or a tensor of the program."""
    if isinstance(value, int | float):
        return relax.const(value, dtype)
    tensor = importer.env[value]
    if str(tensor.ty.dtype) != dtype:
        tensor = importer.block_builder.emit(relax.op.astype(tensor, dtype))
    shape = [int(extent) for extent in tensor.ty.shape]
    return importer.block_builder.emit(relax.op.reshape(tensor, ())) if shape == [1] else tensor


def _clipped(x, scale, zero_point, low: int, high: int, axis: int) -> relax.Expr:
    """`x` within scale * (low - zero_point) .. scale * (high - zero_point)."""
    shape = [1] * len(x.ty.shape)
    if len(scale.ty.shape):
        shape[axis] = -1
        scale, zero_point = relax.op.reshape(scale, shape), relax.op.reshape(zero_point, shape)
    zero_point = relax.op.astype(zero_point, "float32")
    bounds = [
        relax.op.multiply(scale, relax.op.subtract(relax.const(float(bound), "float32"), zero_point))
        for bound in (low, high)
    ]
    return relax.op.minimum(relax.op.maximum(x, bounds[0]), bounds[1])

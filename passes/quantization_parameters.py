"""Scale and zero point of a quantize or dequantize, as far as they are known when compiling."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from .expressions import const_value, shape_of

INTEGERS = ("uint8", "int8")
"""What kernels store activations as, and imported models may."""


def quantization_of(call: relax.Call) -> tuple[float, int] | None:
    """(scale, zero point) of a per-tensor quantize or dequantize; None when per channel or not constant."""
    scale, zero_point = const_value(call.args[1]), const_value(call.args[2])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0])


def channel_quantization_of(call: relax.Call) -> tuple[np.ndarray, np.ndarray] | None:
    """(scales, zero points) of one per channel of an NCHW tensor, float64 and int64 [C]; None for any other."""
    scale, zero_point, shape = const_value(call.args[1]), const_value(call.args[2]), shape_of(call)
    if scale is None or zero_point is None or len(shape) != 4 or int(call.attrs.axis) != 1:
        return None
    if not scale.shape == zero_point.shape == (shape[1],):
        return None
    return scale.astype(np.float64), zero_point.astype(np.int64)


def any_quantization_of(call: relax.Call) -> tuple[Any, Any] | None:
    """(scale, zero point), numbers or [C]; None when there is neither."""
    found = quantization_of(call)
    return channel_quantization_of(call) if found is None else found

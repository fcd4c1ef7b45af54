"""Nearest and bilinear resizing by tables of rows and columns."""

from __future__ import annotations

import numpy as np

from tvm_int8.quantization import arithmetic

from .elementwise import finish


def accumulate(spec, data) -> np.ndarray:
    """float32 of what the tables pick from q - zero_point: rows are blended first, then columns."""
    value = data if data.dtype == np.float32 else (data.astype(np.int32) - np.int32(spec.zero_point)).astype(np.float32)
    for axis, table in ((2, spec.rows), (3, spec.cols)):
        low = np.take(value, [entry[0] for entry in table], axis)
        if spec.method == "linear":
            high = np.take(value, [entry[1] for entry in table], axis)
            weight = np.array([entry[2] for entry in table], np.float32).reshape((-1, 1) if axis == 2 else (-1,))
            low = arithmetic.fma(weight, high - low, low)
        value = low
    return value


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Resize, then the program."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0]))

"""Local response normalisation across channels."""

from __future__ import annotations

import numpy as np

from tvm_int8.quantization import arithmetic

from .elementwise import finish


def accumulate(spec, data) -> np.ndarray:
    """The program's operand 0; squares are added up from the window's first channel to its last."""
    value = data if data.dtype == np.float32 else (data.astype(np.int32) - np.int32(spec.zero_point)).astype(np.float32)
    channels, after = value.shape[1], spec.size - 1 - spec.before
    squares = np.pad(value * value, ((0, 0), (spec.before, after), (0, 0), (0, 0)))
    total = squares[:, :channels]
    for first in range(1, spec.size):
        total = total + squares[:, first : first + channels]
    base = arithmetic.fma(total, np.float32(spec.alpha / spec.size), np.float32(spec.bias))
    return arithmetic.divide_by_power(value, base, spec.beta)


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Normalisation, then the program."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0]))

"""What an ONNX value is while a model is imported: a NumPy array, a constant in quantised form or a Relax variable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant that reaches the graph through DequantizeLinear: ``real = scale * (q - zero_point)``.

    Kept in this form so that a weight stays the integers its author wrote.

    Attributes
    ----------
    q : numpy.ndarray
        int8 or uint8, any shape.
    scale : numpy.ndarray
        float32, scalar or [shape[axis]].
    zero_point : numpy.ndarray
        Of q's dtype, scalar or [shape[axis]].
    axis : int
        Channel axis, non-negative; meaningless for a scalar scale.
    """

    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the constant."""
        return self.q.shape

    @property
    def is_per_channel(self) -> bool:
        """Whether there is a scale per channel."""
        return self.scale.ndim == 1

    def dequantized(self) -> np.ndarray:
        """The real values, float32."""
        scale = along_axis(self.scale, self.axis, self.q.ndim)
        zero = along_axis(self.zero_point.astype(np.int32), self.axis, self.q.ndim)
        real = (self.q.astype(np.int32) - zero).astype(np.float32) * scale
        return np.asarray(real, np.float32)  # NumPy turns arrays without axes into numbers

    def transposed(self, axes) -> QuantizedConstant:
        """The constant with its axes permuted."""
        axis = list(axes).index(self.axis) if self.is_per_channel else self.axis
        return QuantizedConstant(np.ascontiguousarray(self.q.transpose(axes)), self.scale, self.zero_point, axis)

    def reshaped(self, shape) -> QuantizedConstant | None:
        """The constant with another shape, or None when its channels would not stay an axis of their own."""
        q = self.q.reshape(shape)
        if not self.is_per_channel:
            return QuantizedConstant(q, self.scale, self.zero_point, self.axis)
        before, channels = int(np.prod(self.q.shape[: self.axis])), self.q.shape[self.axis]
        for axis, extent in enumerate(q.shape):
            if extent == channels and int(np.prod(q.shape[:axis])) == before:
                return QuantizedConstant(q, self.scale, self.zero_point, axis)
        return None


def transposed_copy(matrix: np.ndarray, rows: int = 64) -> np.ndarray:
    """`matrix` transposed and contiguous, `rows` rows at a time: several times faster than one strided copy."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), rows):
        out[:, start : start + rows] = matrix[start : start + rows].T
    return out


def along_axis(array: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A scalar as it is, a vector shaped to broadcast along `axis` of a tensor with `rank` axes."""
    return array if array.ndim == 0 else array.reshape([-1 if a == axis else 1 for a in range(rank)])


def real_constant(
    q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int
) -> np.ndarray | QuantizedConstant:
    """``scale * (q - zero_point)`` of a constant: in quantised form (int8) for 8 bits, float32 for any other width."""
    if q.dtype not in (np.int8, np.uint8):
        zero = along_axis(zero_point.astype(np.float64), axis, q.ndim)
        return np.asarray((q.astype(np.float64) - zero) * along_axis(scale, axis, q.ndim), np.float32)
    if q.dtype == np.uint8:
        q, zero_point = ((array.astype(np.int16) - 128).astype(np.int8) for array in (q, zero_point))
    return QuantizedConstant(q, scale, zero_point, axis)


@dataclass(frozen=True, eq=False)
class IntegerValued:
    """The int32 result of an integer convolution or product, held as a float32 variable of integral values."""

    value: relax.Var


Value = np.ndarray | QuantizedConstant | IntegerValued | relax.Var

"""Per-channel scale and shift, `y = scale * x + shift`, read from the operators that spell it.

    multiply, divide by a constant         scale
    add, subtract a constant, c - x        shift (and the sign)
    negative                               scale -1
    nn.batch_norm, result 0                scale = gamma / sqrt(var + eps), shift = beta - mean * scale

The constant may be a scalar or have the channel axis alone ([1, C, 1, 1], [C, 1, 1], [C] for a dense layer). Numbers
are float64 until they are written back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvm_int8.errors import ModelError
from tvm_int8.passes.dataflow import Expr, const_value, is_float, op_name, shape_of


@dataclass(frozen=True)
class ChannelAffine:
    """`scale * x + shift`, both float64 [C]; `scalar` when neither depends on the channel by the way it was written."""

    scale: np.ndarray
    shift: np.ndarray
    scalar: bool = False

    def then(self, other: ChannelAffine) -> ChannelAffine:
        """`other` applied to the result of this one."""
        return ChannelAffine(
            other.scale * self.scale, other.scale * self.shift + other.shift, self.scalar and other.scalar
        )

    @property
    def scales(self) -> bool:
        """Whether any channel is scaled."""
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        """Whether any channel is shifted."""
        return bool(np.any(self.shift != 0))


def fits(array: np.ndarray, dtype: str) -> bool:
    """Whether float64 numbers are finite and stay so in a smaller type."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.all(np.isfinite(array.astype(dtype))))


def read_affine(value: Expr, axis: int) -> tuple[Expr, ChannelAffine] | None:
    """The operand and the scale and shift an arithmetic operator applies to it per channel, or None.

    Parameters
    ----------
    value : Expr
        The value of a binding.
    axis : int
        Which axis of its shape counts the channels.
    """
    name = op_name(value)
    if name not in READABLE or not is_float(value):
        return None
    constants = [const_value(arg) for arg in value.args]
    if sum(array is None for array in constants) != 1:
        return None
    where = next(index for index, array in enumerate(constants) if array is None)
    source, shape = value.args[where], shape_of(value)
    if shape_of(source) != shape:
        return None
    if name == "negative":
        vector, scalar = np.ones(shape[axis]), True
    else:
        array = constants[1 - where]
        vector, scalar = channel_vector(array, shape, axis), array.ndim == 0
    if vector is None:
        return None
    read = READABLE[name](vector, where)
    return None if read is None else (source, ChannelAffine(*read, scalar))


def _read_divide(vector: np.ndarray, where: int) -> tuple[np.ndarray, np.ndarray] | None:
    return (1 / vector, np.zeros_like(vector)) if where == 0 and np.all(vector != 0) else None


def _read_subtract(vector: np.ndarray, where: int) -> tuple[np.ndarray, np.ndarray]:
    return (np.ones_like(vector), -vector) if where == 0 else (-np.ones_like(vector), vector)


READABLE = {
    "multiply": lambda vector, where: (vector, np.zeros_like(vector)),
    "divide": _read_divide,
    "add": lambda vector, where: (np.ones_like(vector), vector),
    "subtract": _read_subtract,
    "negative": lambda vector, where: (-vector, np.zeros_like(vector)),
}


def channel_vector(array: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray | None:
    """The float64 [C] a constant broadcasts to along the channels of a tensor, or None if it varies otherwise."""
    if array.ndim > len(shape):
        return None
    aligned: np.ndarray = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(dim != 1 for index, dim in enumerate(aligned.shape) if index != axis):
        return None
    return np.broadcast_to(aligned.astype(np.float64).ravel(), (shape[axis],)).copy()


def batch_norm_affine(call: relax.Call, name: str) -> ChannelAffine | None:
    """Scale and shift of an `nn.batch_norm` with constant statistics (None if they are not constant).

    Raises
    ------
    ModelError
        When the batch norm is in training mode: it would normalise with the statistics of each input.
    """
    if call.attrs.training:
        raise ModelError(name, "batch_norm in training mode", "inference mode", "export the model after model.eval()")
    parameters = [const_value(arg) for arg in call.args[1:5]]
    if any(array is None for array in parameters):
        return None
    gamma, beta, mean, var = (array.astype(np.float64) for array in parameters)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.sqrt(var + float(call.attrs.epsilon))
        if call.attrs.scale:
            scale = gamma * scale
        shift = -mean * scale
    return ChannelAffine(scale, shift + beta if call.attrs.center else shift)

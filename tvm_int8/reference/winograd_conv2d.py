"""3x3 convolution by Winograd's minimal filtering: transform, quantise, multiply, transform back."""

from __future__ import annotations

import numpy as np

from tvm_int8 import winograd
from tvm_int8.quantization import arithmetic

from .elementwise import finish

F32 = np.float32


class _Floats:
    """The operations of transforms on float32 arrays, one rounding each."""

    add, sub = np.add, np.subtract

    @staticmethod
    def plus(x, b):
        return x + b

    @staticmethod
    def root(a):
        return a * F32(winograd.ROOT)

    @staticmethod
    def pair(x, y):
        return x + y, x - y

    @staticmethod
    def mul(a, number):
        return a * F32(number)

    @staticmethod
    def fma(a, number, b):
        return arithmetic.fma(a, F32(number), b)


class _Products(_Floats):
    """The same where inputs are (integers as float32, scale): multiplied and added with one rounding."""

    @staticmethod
    def pair(x, y):
        (value, scale), second = x, y[0] * y[1]
        return arithmetic.fma(value, scale, second), arithmetic.fma(value, scale, -second)

    @staticmethod
    def plus(x, b):
        value, scale = x
        return arithmetic.fma(value, scale, b)


def quantized_data(spec, data, constants) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transformed data as they are multiplied, and the multiplier of every tile.

    Returns
    -------
    narrow, wide : int32 [positions, N, C, ty, tx], the first of int8 values
    multiplier : int32 [N, ty, tx], a fraction of 2**15
    """
    tiles = winograd.tiles_of(data.astype(np.int32), spec.tile, spec.padding, spec.pad_value) - spec.pad_value
    transformed = winograd.transformed_data(tiles << winograd.shift(spec.tile), spec.tile, winograd.Integers)
    assert np.abs(transformed).max(initial=0) < 1 << 15
    scale = constants.input_scale.astype(np.int32)[:, None, :, None, None]
    scaled = winograd.multiply_high(transformed[narrow_positions(spec)], scale)
    multiplier = winograd.tile_multiplier(np.abs(scaled).max((0, 2), initial=0))
    narrow = winograd.multiply_high(scaled, multiplier[:, None])
    return np.clip(narrow, -128, 127), transformed[list(spec.wide)], multiplier


def narrow_positions(spec) -> list[int]:
    """All but the wide ones."""
    return [p for p in range(winograd.positions(spec.tile)) if p not in spec.wide]


def integer_products(spec, narrow, wide, constants) -> np.ndarray:
    """The int32 sums of products, [positions, N, O, ty, tx]."""
    found = np.zeros((len(narrow) + len(wide), narrow.shape[1], spec.result.shape[1], *narrow.shape[3:]), np.int32)
    for places, values, weight in (
        (narrow_positions(spec), narrow, constants.weight),
        (list(spec.wide), wide, constants.wide_weight),
    ):
        if places:
            # float64 holds the sums exactly
            total = np.einsum("pncyx,poc->pnoyx", values.astype(np.float64), weight.astype(np.float64), optimize=True)
            assert np.abs(total).max(initial=0) < 2.0**31
            found[places] = total.astype(np.int32)
    return found


def float_products(transformed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """float32 sums of products, one channel after the other: [positions, N, O, ty, tx]."""
    positions, n, channels, ty, tx = transformed.shape
    found = np.zeros((positions, n, weight.shape[1], ty, tx), F32)
    for c in range(channels):
        found = arithmetic.fma(transformed[:, :, c, None], weight[:, None, :, c, None, None], found)
    return found


def accumulate(spec, data, constants) -> np.ndarray:
    """What the program starts from, float32 [N, O, H, W]."""
    bias = None if constants.bias is None else constants.bias.reshape(1, -1, 1, 1).astype(F32)
    if data.dtype == np.float32:
        tiles = winograd.tiles_of(data, spec.tile, spec.padding, 0)
        found = _outputs(spec, float_products(winograd.transformed_data(tiles, spec.tile, _Floats), constants.weight))
        return found if bias is None else found + bias
    narrow, wide, multiplier = quantized_data(spec, data, constants)
    products = integer_products(spec, narrow, wide, constants).astype(F32)
    scale = np.broadcast_to(constants.output_scale[:, None, :, None, None], products.shape)
    if not len(narrow):
        found = _outputs(spec, products, scale)
        return found if bias is None else found + bias
    factor = multiplier.astype(F32)[:, None]
    scale = scale.copy()
    scale[list(spec.wide)] *= factor * F32(2.0**-15)  # outputs are divided by it, whatever they are sums of
    gain = np.repeat(np.repeat(F32(2.0**15) / factor, spec.tile[0], 2), spec.tile[1], 3)
    gain = gain[:, :, : spec.result.shape[2], : spec.result.shape[3]]
    return arithmetic.fma(_outputs(spec, products, scale), gain, F32(0) if bias is None else bias)


def _outputs(spec, products: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Products [positions, N, O, ty, tx], times their scale, transformed back: [N, O, H, W]."""
    terms, first = (list(products), _Floats) if scale is None else (list(zip(products, scale, strict=True)), _Products)
    outs = winograd.transform_products(spec.tile, terms.__getitem__, first, _Floats)
    whole = np.stack([np.stack(row, -1) for row in outs], -2)  # [N, O, ty, tx, rows, columns]
    n, o, ty, tx, rows, columns = whole.shape
    whole = whole.transpose(0, 1, 2, 4, 3, 5).reshape(n, o, ty * rows, tx * columns)
    return whole[:, :, : spec.result.shape[2], : spec.result.shape[3]]


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Convolution, then the program over its accumulators."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0], constants))

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


def quantized_data(spec, data, constants) -> tuple[np.ndarray, np.ndarray]:
    """Transformed data as they are multiplied: int32 [narrow positions, N, C, ty, tx] of int8 values, [wide, ...]."""
    tiles = winograd.tiles_of(data.astype(np.int32), spec.tile, spec.padding, spec.pad_value)
    transformed = winograd.transformed_data(tiles << winograd.shift(spec.tile), spec.tile, winograd.Integers)
    assert np.abs(transformed).max(initial=0) < 1 << 15
    wide, narrow = transformed[list(spec.wide)], [p for p in range(len(transformed)) if p not in spec.wide]
    offset, scale = (
        c.astype(np.int32)[:, None, :, None, None] for c in (constants.input_offset, constants.input_scale)
    )
    shifted = list(spec.shifted)
    transformed[shifted] = np.clip(transformed[shifted] - offset, -(1 << 15), (1 << 15) - 1)
    return np.clip(winograd.multiply_high(transformed[narrow], scale), -128, 127), wide


def integer_products(spec, data, constants) -> np.ndarray:
    """The int32 sums of products, [positions, N, O, ty, tx]."""
    narrow, wide = quantized_data(spec, data, constants)
    found = np.zeros((len(narrow) + len(wide), narrow.shape[1], spec.result.shape[1], *narrow.shape[3:]), np.int32)
    narrow_positions = [p for p in range(len(found)) if p not in spec.wide]
    for places, values, weight in (
        (narrow_positions, narrow, constants.weight),
        (list(spec.wide), wide, constants.wide_weight),
    ):
        if places:
            # float64 holds the sums exactly
            total = np.einsum("pncyx,poc->pnoyx", values.astype(np.float64), weight.astype(np.float64), optimize=True)
            total += constants.start[places][:, None, :, None, None]
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
    rows, columns = spec.tile
    if data.dtype == np.float32:
        tiles = winograd.tiles_of(data, spec.tile, spec.padding, 0)
        transformed = winograd.transformed_data(tiles, spec.tile, _Floats)
        products = float_products(transformed, constants.weight)
        terms, first = list(products), _Floats
    else:
        products = integer_products(spec, data, constants).astype(F32)
        scale = constants.output_scale[:, None, :, None, None]
        terms, first = list(zip(products, np.broadcast_to(scale, products.shape), strict=True)), _Products
    outs = winograd.transform_products(spec.tile, terms.__getitem__, first, _Floats)
    n, o, ty, tx = products.shape[1:]
    whole = np.stack([np.stack(row, -1) for row in outs], -2)  # [N, O, ty, tx, rows, columns]
    whole = whole.transpose(0, 1, 2, 4, 3, 5).reshape(n, o, ty * rows, tx * columns)
    acc = whole[:, :, : spec.result.shape[2], : spec.result.shape[3]]
    return acc if constants.bias is None else acc + constants.bias.reshape(1, -1, 1, 1).astype(F32)


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Convolution, then the program over its accumulators."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0], constants))

"""Winograd's minimal filtering F(m, 3): transforms as straight-line code, their matrices, bounds of their values.

    y = A^T ((G g) * (B^T d))          m outputs y, a filter g of three taps, m + 2 inputs d

and in two dimensions Y = A^T ((G g G^T) * (B^T d B)) A: the m + 2 products of each axis replace 3 m (Winograd 1980,
*Arithmetic complexity of computations*; Lavin and Gray 2015, arXiv:1509.09308).  The matrices follow from where the
polynomials are evaluated (Toom and Cook).  F(2, 3) takes the points 0, 1, -1 and infinity.  F(4, 3) usually adds 2 and
-2, whose powers amplify rounding errors; here it has 0, +-sqrt(1/2), +-sqrt(2) and infinity.  Points near one amplify
less (Barabasz et al. 2020, *Error analysis and improving the accuracy of Winograd convolution for deep neural
networks*, arXiv:1803.10986), and these two have a product and squares without odd digits: 6.6 dB less noise of
quantised products of white data, at the cost of two more multiplications per axis.

The transforms of data and of results are written once, over an `ops` object that says what their operations are: NumPy
for the reference, vectors for kernels.  Integers stay integers: int16 data are multiplied by sqrt(1/2) as `vpmulhrsw`
does, (x * 23170 + 2**14) >> 15.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAPS = 3
OUTPUTS = (2, 4)
"""The m of F(m, 3) that there are transforms for."""
ROOT = math.sqrt(0.5)
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, ROOT, -ROOT, 1 / ROOT, -1 / ROOT)}
"""Finite points, in the order of the products; infinity comes last."""
ROOT_Q15 = 23170
"""sqrt(1/2) as a fraction of 2**15."""


def transform_data(outputs: int, d: list, ops: Any) -> list:
    """B^T d.

    Parameters
    ----------
    outputs : int
        m, one of `OUTPUTS`.
    d : list of m + 2 values
    ops : object
        With methods ``add(a, b)``, ``sub(a, b)``, and for m = 4 ``root(a)``, which multiplies by sqrt(1/2).
    """
    if outputs == 2:
        return [ops.sub(d[0], d[2]), ops.add(d[1], d[2]), ops.sub(d[2], d[1]), ops.sub(d[3], d[1])]
    twice = [ops.add(v, v) for v in d[1:5]]
    even_near, odd_near = ops.sub(d[4], twice[1]), ops.root(ops.sub(d[3], twice[0]))
    even_far, odd_far = ops.root(ops.sub(twice[3], d[2])), ops.sub(twice[2], d[1])
    ends = [ops.sub(ops.add(d[i], d[i + 4]), twice[i + 1]) for i in (0, 1)]
    first, last = (ops.sub(ops.add(end, end), d[i + 2]) for i, end in enumerate(ends))
    return [
        first,
        ops.add(even_near, odd_near),
        ops.sub(even_near, odd_near),
        ops.add(even_far, odd_far),
        ops.sub(even_far, odd_far),
        last,
    ]


def transform_result(outputs: int, x: list, ops: Any) -> list:
    """A^T x.

    Parameters
    ----------
    outputs : int
        m, one of `OUTPUTS`.
    x : list of m + 2 values
        They may be products that have not been multiplied: nothing but `pair` and `plus` looks at them.
    ops : object
        With methods ``pair(x, y)`` -> (x + y, x - y), ``plus(x, b)`` -> x + b, ``add(a, b)``, ``mul(a, number)`` and
        ``fma(a, number, b)`` -> a * number + b.
    """
    total, difference = ops.pair(x[1], x[2])
    if outputs == 2:
        return [ops.plus(x[0], total), ops.plus(x[3], difference)]
    far_total, far_difference = ops.pair(x[3], x[4])
    return [
        ops.plus(x[0], ops.add(total, far_total)),
        ops.fma(difference, ROOT, ops.mul(far_difference, 1 / ROOT)),
        ops.fma(total, 0.5, ops.mul(far_total, 2.0)),
        ops.plus(x[5], ops.fma(difference, ROOT / 2, ops.mul(far_difference, 2 / ROOT))),
    ]


def transform_tile(tile: tuple[int, int], columns: Sequence[list], ops: Any) -> list:
    """B^T d B, rows first: the values of a tile, column by column, become its positions, row by row."""
    first = [transform_data(tile[0], column, ops) for column in columns]
    rows = [transform_data(tile[1], [column[i] for column in first], ops) for i in range(tile[0] + TAPS - 1)]
    return [value for row in rows for value in row]


def transform_products(tile: tuple[int, int], product: Callable[[int], Any], first: Any, second: Any) -> list[list]:
    """A^T x A, rows first: the products of all positions become the outputs of a tile, row by row.

    Parameters
    ----------
    tile : (rows, columns) of outputs
    product : callable
        Returns the product of a position.
    first, second : as `ops` for `transform_result`
        Of the first and of the second axis.
    """
    rows, columns = tile
    height, width = rows + TAPS - 1, columns + TAPS - 1
    found = [transform_result(rows, [product(y * width + x) for y in range(height)], first) for x in range(width)]
    return [transform_result(columns, [column[y] for column in found], second) for y in range(rows)]


class _Exact:
    """The operations on float64 arrays, for matrices."""

    add, sub, plus = np.add, np.subtract, np.add

    @staticmethod
    def root(a):
        return a * ROOT

    @staticmethod
    def pair(x, y):
        return x + y, x - y

    @staticmethod
    def mul(a, number):
        return a * number

    @staticmethod
    def fma(a, number, b):
        return a * number + b


@dataclass(frozen=True)
class Matrices:
    """Of F(m, 3), float64.

    Parameters
    ----------
    data : [m + 2, m + 2], B^T
    weight : [m + 2, 3], G
    result : [m, m + 2], A^T
    """

    data: np.ndarray
    weight: np.ndarray
    result: np.ndarray


@functools.cache
def matrices(outputs: int) -> Matrices:
    """Return the matrices of F(outputs, 3) that the transforms compute."""
    size = outputs + TAPS - 1
    data = np.array(transform_data(outputs, list(np.eye(size)), _Exact))
    result = np.array(transform_result(outputs, list(np.eye(size)), _Exact))
    # The coefficients of prod(x - point) without one of its factors, and of all of it, are Toom and Cook's rows of B^T;
    # the code has multiples of them, by which the weights' rows are divided.
    weight, points = np.zeros((size, TAPS)), POINTS[outputs]
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        polynomial = np.poly(others)
        multiple = data[i, len(others)]  # the coefficient of the highest power, which is one in Toom and Cook's
        weight[i] = point ** np.arange(TAPS) / np.polyval(polynomial, point) / multiple
    weight[-1, -1] = 1 / data[-1, -1]
    return Matrices(data, weight, result)


def transformed_weight(weight: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """G g G^T of every filter.

    Parameters
    ----------
    weight : [O, C, 3, 3]
    tile : (outputs of rows, of columns)

    Returns
    -------
    float64 [positions, O, C], row by row.
    """
    rows, columns = (matrices(outputs).weight for outputs in tile)
    found = np.einsum("iy,ocyx,jx->ijoc", rows, weight.astype(np.float64), columns, optimize=True)
    return found.reshape(-1, *weight.shape[:2])


def positions(tile: tuple[int, int]) -> int:
    """How many products a tile takes, per pair of channels."""
    return (tile[0] + TAPS - 1) * (tile[1] + TAPS - 1)


def result_weights(tile: tuple[int, int]) -> np.ndarray:
    """How much noise power of each product goes into the outputs of a tile, on average: float64 [positions]."""
    rows, columns = (np.square(matrices(outputs).result).mean(0) for outputs in tile)
    return np.outer(rows, columns).ravel()


def of_constant(tile: tuple[int, int]) -> np.ndarray:
    """What a tile of ones becomes: float64 [positions]."""
    rows, columns = (matrices(outputs).data.sum(1) for outputs in tile)
    return np.outer(rows, columns).ravel()


def result_means(tile: tuple[int, int]) -> np.ndarray:
    """How much of each product goes into the outputs of a tile, on average: float64 [positions]."""
    rows, columns = (matrices(outputs).result.mean(0) for outputs in tile)
    return np.outer(rows, columns).ravel()


# Integers


def shift(tile: tuple[int, int]) -> int:
    """Bits that data are shifted to the left by before they are transformed, so that rounding them costs little."""
    return 1 if tile == (4, 4) else 3


def bounds(tile: tuple[int, int], low: int, high: int) -> np.ndarray:
    """Return the largest magnitude of each transformed integer, for data in low .. high, unshifted: int64 [positions].

    They fit int16 after `shift`, whatever the zero point of the data.
    """
    rows, columns = (matrices(outputs).data for outputs in tile)
    found = []
    for row in rows:
        for column in columns:
            both = np.outer(row, column)
            positive, negative = both.clip(0).sum(), both.clip(max=0).sum()
            found.append(max(positive * high + negative * low, -(positive * low + negative * high)))
    # what roundings of the first axis may add, as the second amplifies them, of shifted integers
    rounding = 8 / (1 << shift(tile)) if 4 in tile else 0
    return np.ceil(np.array(found) + rounding).astype(np.int64)


def multiply_high(a: np.ndarray, b) -> np.ndarray:
    """The product of int16 fractions of 2**15, rounded half up: `vpmulhrsw`; int32 arrays of int16 values."""
    return (a * b + (1 << 14)) >> 15


def tile_multiplier(peak: np.ndarray) -> np.ndarray:
    """What takes the largest magnitude of a tile to 127, as a fraction of 2**15: int32, rounded, 32767 at most."""
    quotient = np.float32(127 << 15) / np.maximum(peak, 1).astype(np.float32)
    return np.minimum(np.rint(quotient), 32767).astype(np.int32)


class Integers:
    """The operations on int32 arrays that hold int16 values."""

    add, sub = np.add, np.subtract

    @staticmethod
    def root(a):
        """a * sqrt(1/2), rounded."""
        return multiply_high(a, np.int32(ROOT_Q15))


def transformed_data(tiles: np.ndarray, tile: tuple[int, int], ops: Any) -> np.ndarray:
    """B^T d B of tiles, rows first.

    Parameters
    ----------
    tiles : [..., rows + 2, columns + 2]
    tile : (rows, columns) of outputs
    ops : as for `transform_data`

    Returns
    -------
    [positions, ...]
    """
    height, width = tiles.shape[-2:]
    columns = [[tiles[..., y, x] for y in range(height)] for x in range(width)]
    return np.stack(transform_tile(tile, columns, ops))


def tiles_of(data: np.ndarray, tile: tuple[int, int], padding: tuple[int, int, int, int], pad_value) -> np.ndarray:
    """Cut a map into the overlapping tiles that its 3x3 convolution needs.

    Parameters
    ----------
    data : [N, C, H, W]
    tile : (rows, columns) of outputs
    padding : top, left, bottom, right
        Behind these, as many rows and columns of `pad_value` as fill the last tiles.

    Returns
    -------
    [N, C, tiles in a column, tiles in a row, rows + 2, columns + 2], a view of the padded map.
    """
    top, left, bottom, right = padding
    outs = [data.shape[2] + top + bottom - 2, data.shape[3] + left + right - 2]
    counts = [-(-out // m) for out, m in zip(outs, tile, strict=True)]
    more = [count * m - out for count, m, out in zip(counts, tile, outs, strict=True)]
    widths = [(0, 0), (0, 0), (top, bottom + more[0]), (left, right + more[1])]
    padded = np.pad(data, widths, constant_values=pad_value)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (tile[0] + 2, tile[1] + 2), (2, 3))
    return windows[:, :, :: tile[0], :: tile[1]]

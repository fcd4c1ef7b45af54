"""Weights of 1 to 6 bits as int8: every output channel on the 2^bits levels that suit it best.

Where levels are few, none can be wasted, and half a step matters. Integers of twice the resolution have both: in

    values = 2 * code + lowest,     code in 0 .. 2^bits - 1,     lowest in (-2^bits, 1 - 2^bits, 2 - 2^bits)

are the paper's quantiser for the middle one, whose levels are odd multiples of half a step and leave zero out (Lin et
al. 2016, arXiv:1511.06393, after Max 1960), or have zero and one level more on one side. All of them lie within
[-64, 64], so two products with uint8 fit into int16, as those of 7-bit weights do.

The scale is the one with the least squared error: the best of a grid, then in turns codes for the scale and, by least
squares, the scale for the codes (Lloyd 1982), until that ends.
"""

from __future__ import annotations

import numpy as np

MOST_BITS = 6
"""With more, integers of twice the resolution do not fit into int8, and half a step does not matter."""
SAMPLED = 1024
"""Weights of an output channel that the grid of scales is tried on: more say the same."""
FEW_WEIGHTS = 64
"""Of an output channel: so few do not average out, and each grid has a best scale of its own."""

_COARSE = np.geomspace(1.0, 0.08, 13)  # scales tried, relative to the one that clips nothing
_FINE = np.geomspace(0.85, 1.18, 15)  # and then to the best of these
_TURNS = 3
_CHUNK = 1 << 16  # weights at a time: they and their temporaries stay in the L2 cache


def lowest_levels(bits: int) -> tuple[int, ...]:
    """The lowest integers a channel can have; its levels are two apart. Where are many, only the symmetric ones."""
    return (-(2**bits), 1 - 2**bits, 2 - 2**bits) if bits <= 4 else (1 - 2**bits,)


def quantize_few_bits(
    weight: np.ndarray, axis: int | None, bits: int, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise a weight with the least squared error.

    Parameters
    ----------
    weight : float array, any shape
        Finite.
    axis : int or None
        The output channels' axis. None: one scale for all.
    bits : int
        1 to `MOST_BITS`.
    importance : np.ndarray, optional
        What the squared error of each weight counts, broadcastable to `weight`. None: all the same.

    Returns
    -------
    values : int8, `weight`'s shape
    scale : float32 [channels], [] without an axis
        1 for a channel that is all zero.
    lowest : int8, `scale`'s shape
        The integer that code 0 stands for.

    Examples
    --------
    >>> values, scale, lowest = quantize_few_bits(np.array([[1.0, -1.0, 1.0], [0.0, 2.0, 4.0]]), 0, 1)
    >>> (values * scale[:, None]).tolist(), lowest.tolist()
    ([[1.0, -1.0, 1.0], [0.0, 3.0, 3.0]], [-1, 0])
    """
    weight = np.asarray(weight, np.float32)
    moved = weight[None] if axis is None else np.moveaxis(weight, axis, 0)
    rows = np.ascontiguousarray(moved).reshape(len(moved), -1)
    counts = None
    if importance is not None:
        spread = np.broadcast_to(np.asarray(importance, np.float32), weight.shape)
        counts = (spread[None] if axis is None else np.moveaxis(spread, axis, 0)).reshape(rows.shape)
    values, scale, lowest = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32), np.empty(len(rows), np.int8)
    height = max(_CHUNK // max(rows.shape[1], 1), 1)
    for top in range(0, len(rows), height):
        chunk = slice(top, top + height)
        found = _rows(rows[chunk], bits, None if counts is None else counts[chunk])
        values[chunk], scale[chunk], lowest[chunk] = found
    restored = values.reshape(moved.shape)
    shape = () if axis is None else (-1,)
    quantized = restored[0] if axis is None else np.moveaxis(restored, 0, axis)
    return np.ascontiguousarray(quantized), scale.reshape(shape), lowest.reshape(shape)


def codes(rows: np.ndarray, scale: np.ndarray, lowest: np.ndarray, bits: int) -> np.ndarray:
    """The nearest codes, float32 [O, K], of rows with scale and lowest level [O, 1]."""
    found = np.rint((rows / scale - lowest) / 2)
    return np.clip(found, 0, 2**bits - 1, out=found)


def _rows(rows: np.ndarray, bits: int, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scale and lowest level of [O, K]."""
    widest = np.abs(rows).max(1, keepdims=True, initial=0.0) / np.float32(2**bits - 1)
    alive = widest >= np.finfo(np.float32).tiny
    widest = np.where(alive, widest, np.float32(1.0)).astype(np.float32)
    step = -(-rows.shape[1] // SAMPLED)
    sample = rows[:, ::step], None if counts is None else counts[:, ::step]
    least = np.full(widest.shape, np.inf, np.float32)
    values, scale, lowest = (np.zeros(shape, np.float32) for shape in (rows.shape, widest.shape, widest.shape))
    middle = np.full(widest.shape, 1 - 2**bits, np.float32)
    start = _best_of(_COARSE, *sample, widest, middle, bits)
    start = _best_of(_FINE, *sample, start, middle, bits)
    for bottom in lowest_levels(bits):
        level = np.full(widest.shape, bottom, np.float32)
        tried = _best_of(_FINE, *sample, start, level, bits) if rows.shape[1] <= FEW_WEIGHTS else start
        for _ in range(_TURNS):
            found = 2 * codes(rows, tried, level, bits) + level
            tried = _fitted(rows, found, counts, tried)
        found = 2 * codes(rows, tried, level, bits) + level
        error = _errors(rows, found, counts, tried)
        better = error < least
        least, scale = np.where(better, error, least), np.where(better, tried, scale)
        values, lowest = np.where(better, found, values), np.where(better, level, lowest)
    dead = ~alive[:, 0]
    values[dead], lowest[dead] = 0, -(2**bits)  # which has zero
    return values, scale[:, 0], lowest[:, 0]


def _best_of(
    shares: np.ndarray, rows: np.ndarray, counts: np.ndarray | None, scale: np.ndarray, lowest: np.ndarray, bits: int
) -> np.ndarray:
    """The scale [O, 1], of those that are these shares of `scale`, with the least error of the rows."""
    candidates = [np.maximum(scale * np.float32(share), np.finfo(np.float32).tiny) for share in shares]
    lost, errors = np.empty_like(rows), []
    for candidate in candidates:
        step, bottom = 2 * candidate, candidate * lowest
        np.subtract(rows, bottom, out=lost)
        np.divide(lost, step, out=lost)
        np.rint(lost, out=lost)
        np.clip(lost, 0, 2**bits - 1, out=lost)
        np.multiply(lost, step, out=lost)
        np.add(lost, bottom, out=lost)
        np.subtract(lost, rows, out=lost)
        if counts is None:
            errors.append(np.einsum("ok,ok->o", lost, lost))
        else:
            np.multiply(lost, lost, out=lost)
            errors.append(np.einsum("ok,ok->o", lost, counts))
    best = np.stack(errors)[..., None].argmin(0)
    return np.take_along_axis(np.stack(candidates), best[None], 0)[0]


def _errors(rows: np.ndarray, values: np.ndarray, counts: np.ndarray | None, scale: np.ndarray) -> np.ndarray:
    lost = values * scale - rows
    weighted = lost if counts is None else lost * counts
    return np.einsum("ok,ok->o", weighted, lost)[:, None]


def _fitted(rows: np.ndarray, values: np.ndarray, counts: np.ndarray | None, scale: np.ndarray) -> np.ndarray:
    """The scale [O, 1] of least squares for given integers; `scale` where that is none."""
    weighted = values if counts is None else values * counts
    power = np.einsum("ok,ok->o", weighted, values)[:, None]
    fitted = np.einsum("ok,ok->o", weighted, rows)[:, None] / np.maximum(power, np.finfo(np.float32).tiny)
    return np.where(fitted >= np.finfo(np.float32).tiny, fitted, scale)

"""Weights as symmetric int8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvm_int8.errors import ModelError

ROUNDINGS = ("nearest", "sums")
CLIPPINGS = ("none", "mse")
BITS = (8, 7)

SEARCHED_WEIGHTS = 64
"""Weights per output channel up to which scales are searched: the errors of many weights average out at any scale."""

_STRETCH = np.linspace(0.95, 1.05, 41)  # scales tried with rounding="sums", relative to the one found before
_SUM_SHARE = 0.8  # of the error that comes from a kernel's sum: how alike neighbouring pixels are
_CLIPPED = np.linspace(1.0, 0.3, 57)  # scales tried with clipping="mse", relative to max|weight| / limit
_CHUNK = 1 << 15  # weights searched at a time: they and two temporaries stay in the L2 cache


def weight_limit(bits: int = 8) -> int:
    """Largest magnitude of a quantised weight: the range is symmetric, so that negation is exact.

    127 of 8 bits; 63 of 7, with which the sum of two products with uint8 fits into int16 (2 * 255 * 63 < 2**15).
    """
    return 2 ** (bits - 1) - 1


def quantize_weight(
    weight: np.ndarray,
    axis: int | None = 0,
    name: str = "weight",
    *,
    bits: int = 8,
    clipping: str = "none",
    rounding: str = "nearest",
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a weight symmetrically, with one scale per output channel or one for the tensor.

    ``q = clip(round(weight / scale), -limit, limit)`` in float32, half to even, with zero point 0 and the scale of
    `weight_scale` (Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference: a whitepaper*,
    2018, arXiv:1806.08342).

    Parameters
    ----------
    weight : np.ndarray
        Real, any shape.
    axis : int or None
        The output channels' axis: 0 for OIHW, 1 for IOHW and for the K x M matrix of a dense layer. None: one scale.
    name : str
        The tensor's name, for error messages.
    bits : int
        8: within [-127, 127]; 7: within [-63, 63].
    clipping : str
        "none" keeps the largest weight; "mse" clips where that lowers the squared error.
    rounding : str
        "nearest", or "sums": round the taps of each KH x KW kernel (last two axes) so that their sum is kept, too.
        Activations are smooth, so the sum is what most of a kernel's error meets: a rounded edge filter must not begin
        to see brightness. This is the best rounding for inputs that are constant over the kernel, in the sense of
        AdaRound (Nagel et al. 2020, arXiv:2004.10568). The scale of an output channel of few weights, as depthwise
        convolutions have, is then the one near the scale of `clipping` on whose grid they happen to lie best.
    importance : np.ndarray, optional
        What the squared error of each weight counts with ``clipping="mse"``, broadcastable to `weight`: the mean square
        of the input channel it meets. None: all the same.

    Returns
    -------
    quantized : np.ndarray
        int8, `weight`'s shape.
    scale : np.ndarray
        float32 of shape ``[channels]``, or ``[]`` with ``axis=None``. A channel that is all zero, or too small for a
        normal float32 scale, has scale 1 and quantises to zero.

    Raises
    ------
    ModelError
        When a weight is NaN or infinite.

    Examples
    --------
    >>> quantized, scale = quantize_weight(np.array([[1.27, -0.5], [0.0, 0.0]]), axis=0)
    >>> quantized.tolist(), scale.tolist()
    ([[127, -50], [0, 0]], [0.009999999776482582, 1.0])
    """
    weight = _checked(weight, axis, name, rounding)
    limit = weight_limit(bits)
    scale, others = _scale(weight, axis, limit, clipping, importance), _others(weight, axis)
    if rounding == "sums" and others is not None and weight.size <= SEARCHED_WEIGHTS * scale.size:
        scale = _best_scale(weight, scale, others, limit)
    quantized = _rounded(weight / scale, limit, rounding)
    return quantized.astype(np.int8), scale.reshape(() if axis is None else -1)


def weight_scale(
    weight: np.ndarray,
    axis: int | None = 0,
    name: str = "weight",
    *,
    bits: int = 8,
    clipping: str = "none",
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """Return the scale `quantize_weight` rounds to the nearest with; parameters and shape as there."""
    weight = _checked(weight, axis, name, "nearest")
    return _scale(weight, axis, weight_limit(bits), clipping, importance).reshape(() if axis is None else -1)


def _checked(weight: np.ndarray, axis: int | None, name: str, rounding: str) -> np.ndarray:
    """The weight as finite float32."""
    with np.errstate(over="ignore"):
        weight = np.asarray(weight).astype(np.float32, copy=False)
    if not np.isfinite(weight).all():
        raise ModelError(f"weight {name!r}", "NaN or infinite values", "finite weights", "export the model again")
    if axis is not None and not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"weight {name!r}: axis {axis} is out of range for shape {weight.shape}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"weight {name!r}: rounding {rounding!r}, expected one of {', '.join(ROUNDINGS)}")
    return weight


def _others(weight: np.ndarray, axis: int | None) -> tuple[int, ...] | None:
    """The axes that share a scale."""
    return None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)


def _scale(
    weight: np.ndarray, axis: int | None, limit: int, clipping: str, importance: np.ndarray | None
) -> np.ndarray:
    """float32, broadcastable to the weight."""
    if clipping not in CLIPPINGS:
        raise ValueError(f"weight clipping {clipping!r}, expected one of {', '.join(CLIPPINGS)}")
    scale = np.max(np.abs(weight), axis=_others(weight, axis), keepdims=True, initial=0.0) / np.float32(limit)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1.0), scale).astype(np.float32)
    return _least_squares_scale(weight, scale, axis, limit, importance) if clipping == "mse" else scale


def _rounded(exact: np.ndarray, limit: int, rounding: str) -> np.ndarray:
    quantized = np.rint(exact)
    if rounding == "sums":
        quantized += _sum_correction(exact - quantized)
    return np.clip(quantized, -limit, limit)


def _least_squares_scale(
    weight: np.ndarray, scale: np.ndarray, axis: int | None, limit: int, importance: np.ndarray | None
) -> np.ndarray:
    """The scale, of those up to `scale`, with the least squared error of the weights, rounded to the nearest.

    Clipping and rounding errors are weighed against each other as in ACIQ (Banner et al. 2019, arXiv:1810.05723), on
    the weights themselves instead of a fitted density.
    """
    moved = weight[None] if axis is None else np.moveaxis(weight, axis, 0)
    rows = np.ascontiguousarray(moved).reshape(scale.size, -1)
    counts = None
    if importance is not None:
        spread = np.broadcast_to(np.asarray(importance, np.float32), weight.shape)
        counts = (spread[None] if axis is None else np.moveaxis(spread, axis, 0)).reshape(rows.shape)
    best = _searched(rows, scale.reshape(-1), limit, counts)
    return best.reshape(scale.shape)


def _searched(rows: np.ndarray, scale: np.ndarray, limit: int, counts: np.ndarray | None) -> np.ndarray:
    """Per row, the best of `scale * _CLIPPED`; in chunks that stay in cache."""
    channels, length = rows.shape
    errors = np.zeros((len(_CLIPPED), channels))
    width, height = min(length, _CHUNK) or 1, max(_CHUNK // max(length, 1), 1)
    candidates = np.maximum(np.outer(_CLIPPED, scale).astype(np.float32), np.finfo(np.float32).tiny)
    for top in range(0, channels, height):
        for left in range(0, length, width):
            chunk = slice(top, top + height), slice(left, left + width)
            error = _squared_error(rows[chunk], limit, None if counts is None else counts[chunk])
            for index, candidate in enumerate(candidates[:, top : top + height, None]):
                errors[index, top : top + height] += error(candidate)
    return np.take_along_axis(candidates, errors.argmin(0)[None], 0)[0]


def _squared_error(rows: np.ndarray, limit: int, counts: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
    """A function of the scale, [rows, 1], that gives each row's squared error, without allocating anything."""
    lost = np.empty_like(rows)

    def error(scale: np.ndarray) -> np.ndarray:
        np.divide(rows, scale, out=lost)
        np.rint(lost, out=lost)
        np.clip(lost, -limit, limit, out=lost)
        np.multiply(lost, scale, out=lost)
        np.subtract(lost, rows, out=lost)
        if counts is None:
            return np.einsum("oi,oi->o", lost, lost)
        np.multiply(lost, lost, out=lost)
        return np.einsum("oi,oi->o", lost, counts)

    return error


def _best_scale(weight: np.ndarray, scale: np.ndarray, others: tuple[int, ...], limit: int) -> np.ndarray:
    """Per output channel, the scale near `scale` with the least error, on inputs that vary slowly over a kernel."""

    def error(candidate: np.ndarray) -> np.ndarray:
        lost = _rounded(weight / candidate, limit, "sums") * candidate - weight
        sums = lost.sum((-2, -1), keepdims=True) ** 2
        own, common = (lost**2).sum(others, keepdims=True), sums.sum(others, keepdims=True)
        return (1 - _SUM_SHARE) * own + _SUM_SHARE * common

    candidates = np.stack([scale * np.float32(stretch) for stretch in _STRETCH])
    best = np.stack([error(candidate) for candidate in candidates]).argmin(0)
    return np.take_along_axis(candidates, best[None], 0)[0]


def _sum_correction(remainder: np.ndarray) -> np.ndarray:
    """Return -1, 0 or 1 per weight: the cheapest changes that leave each kernel's remainders a sum below a half."""
    kernels = remainder.reshape(*remainder.shape[:-2], -1)
    missing = np.rint(kernels.sum(-1, keepdims=True))
    rank = kernels.argsort(-1).argsort(-1)  # 0: rounded up the most
    up = rank >= kernels.shape[-1] - missing
    down = rank < -missing
    return (up.astype(np.float32) - down.astype(np.float32)).reshape(remainder.shape)

"""Weights as symmetric int8."""

from __future__ import annotations

import numpy as np

from tvm_int8.errors import ModelError

WEIGHT_MAX = 127
"""Largest magnitude of a quantised weight. -128 stays unused, so that the range is symmetric and negation exact."""


SEARCHED_WEIGHTS = 64
"""Weights per output channel up to which scales are searched: the errors of many weights average out at any scale."""

_STRETCH = np.linspace(0.95, 1.05, 41)  # scales tried, relative to max|weight| / 127
_SUM_SHARE = 0.8  # of the error that comes from a kernel's sum: how alike neighbouring pixels are


def quantize_weight(
    weight: np.ndarray, axis: int | None = 0, name: str = "weight", *, preserve_sums: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a weight symmetrically, with one scale per output channel or one for the tensor.

    ``scale = max|weight| / 127`` (near that with `preserve_sums`) and ``q = clip(round(weight / scale), -127, 127)`` in
    float32, half to even, with zero point 0 (Krishnamoorthi, *Quantizing deep convolutional networks for efficient
    inference: a whitepaper*, 2018, arXiv:1806.08342).

    Parameters
    ----------
    weight : np.ndarray
        Real, any shape.
    axis : int or None
        The output channels' axis: 0 for OIHW, 1 for IOHW and for the K x M matrix of a dense layer. None: one scale.
    name : str
        The tensor's name, for error messages.
    preserve_sums : bool
        Round the taps of each KH x KW kernel (last two axes) so that their sum is kept, too. Activations are smooth,
        so the sum is what most of a kernel's error meets: a rounded edge filter must not begin to see brightness.
        This is the best rounding for inputs that are constant over the kernel, in the sense of AdaRound (Nagel et al.
        2020, arXiv:2004.10568). The scale of an output channel of few weights, as depthwise convolutions have, is then
        the one near max|weight| / 127 on whose grid they happen to lie best.

    Returns
    -------
    quantized : np.ndarray
        int8, `weight`'s shape, within [-127, 127].
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
    with np.errstate(over="ignore"):
        weight = np.asarray(weight).astype(np.float32, copy=False)
    if not np.isfinite(weight).all():
        raise ModelError(f"weight {name!r}", "NaN or infinite values", "finite weights", "export the model again")
    if axis is not None and not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"weight {name!r}: axis {axis} is out of range for shape {weight.shape}")
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.max(np.abs(weight), axis=others, keepdims=True, initial=0.0)
    scale = largest / np.float32(WEIGHT_MAX)
    degenerate = scale < np.finfo(np.float32).tiny
    scale = np.where(degenerate, np.float32(1.0), scale).astype(np.float32)
    if preserve_sums and others is not None and weight.size <= SEARCHED_WEIGHTS * scale.size:
        scale = _best_scale(weight, scale, others)
    return _rounded(weight / scale, preserve_sums).astype(np.int8), scale.reshape(() if axis is None else -1)


def _rounded(exact: np.ndarray, preserve_sums: bool) -> np.ndarray:
    quantized = np.rint(exact)
    if preserve_sums:
        quantized += _sum_correction(exact - quantized)
    return np.clip(quantized, -WEIGHT_MAX, WEIGHT_MAX)


def _best_scale(weight: np.ndarray, scale: np.ndarray, others: tuple[int, ...]) -> np.ndarray:
    """Per output channel, the scale near `scale` with the least error, on inputs that vary slowly over a kernel."""

    def error(candidate: np.ndarray) -> np.ndarray:
        lost = _rounded(weight / candidate, True) * candidate - weight
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

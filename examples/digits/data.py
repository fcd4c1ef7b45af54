"""Handwritten digits for the demo: scikit-learn's 1797 scans, upscaled, in one fixed split.

The scans are 8x8 with values 0..16 ("Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, from the
UCI repository, shipped inside scikit-learn, so nothing is downloaded). They are upscaled bilinearly to 64x64, which
gives the network real work to do. The split is one seeded permutation of all images, so it is the same everywhere:

==============  ======  =========================================================================
part            images  used for
==============  ======  =========================================================================
train             1197  training the weights (``train.py``)
calibration        200  watching the training, and measuring activation ranges for INT8
held out           400  the accuracies that ``train.py`` and ``demo.py`` print; no weight and no
                        range is made from them
==============  ======  =========================================================================

The held-out accuracies were looked at all through development, and the parts share their writers. So they show whether
INT8 decides like FP32; they are no unbiased estimate of how well the network would read anybody's hand.
"""

from __future__ import annotations

import functools

import numpy as np
from sklearn.datasets import load_digits

SIZE = 64
"""Height and width of an image, in pixels."""

_TRAIN, _CALIBRATION = 1197, 200


def upscale(images: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Resize square images bilinearly, pixel centres aligned (ONNX's ``half_pixel``, edges clamped).

    Parameters
    ----------
    images : ndarray of float32, shape [N, S, S]
    size : int
        Height and width of the result.

    Returns
    -------
    ndarray of float32, shape [N, size, size]
    """
    source = images.shape[-1]
    position = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, source - 1)
    # Row i of the matrix holds the two weights (they sum to one) that make target pixel i out of the source pixels.
    matrix = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source))).astype(np.float32)
    return matrix @ images @ matrix.T


@functools.cache
def _split() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Train, calibration and held-out parts, each (x float32 [N, 1, SIZE, SIZE] in 0..1, y int64 [N])."""
    digits = load_digits()
    x = upscale(digits.images.astype(np.float32) / 16)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(2024).permutation(len(y))
    parts = np.split(order, [_TRAIN, _TRAIN + _CALIBRATION])
    return tuple((np.ascontiguousarray(x[part]), y[part]) for part in parts)


def train() -> tuple[np.ndarray, np.ndarray]:
    """Return the 1197 training images.

    Returns
    -------
    x : ndarray of float32, shape [1197, 1, 64, 64], in 0..1
    y : ndarray of int64, shape [1197]
    """
    return _split()[0]


def calibration() -> tuple[np.ndarray, np.ndarray]:
    """Return the 200 calibration images and their labels, as `train` does."""
    return _split()[1]


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return the 400 images that neither weights nor ranges are made from, as `train` does."""
    return _split()[2]


def calibration_inputs(count: int | None = None) -> list[np.ndarray]:
    """Return network inputs to calibrate with.

    Parameters
    ----------
    count : int, optional
        How many of the 200 to return; all by default.

    Returns
    -------
    list of ndarray of float32, each of shape [1, 1, 64, 64]
    """
    x = calibration()[0][:count]
    return [x[i : i + 1] for i in range(len(x))]

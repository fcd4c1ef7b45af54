"""Ranges for a model that came without calibration data: better than nothing, and never silent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tvm_int8.errors import CalibrationError

_SHARED_BETWEEN_CHANNELS = 0.8  # of the variance: the channels of a natural image are mostly its brightness


class CalibrationWarning(UserWarning):
    """Calibration went on, but with less than it should have had."""


def warn_data_free(stacklevel: int = 3) -> None:
    """Tell the user that ranges are guesses, what that may cost and what to do about it.

    Parameters
    ----------
    stacklevel : int
        As in `warnings.warn`; 3 points at the caller of the function that calls this one.
    """
    message = (
        "No calibration data was given: activation ranges are estimated from synthetic inputs of zero mean and "
        "unit variance, and the INT8 model may be noticeably less accurate than the float one. Pass calibration=... "
        "with some 100 to 500 typical inputs, preprocessed as for inference, or a table made from them with "
        "tvm_int8.calibrate(model, data)."
    )
    warnings.warn(CalibrationWarning(message), stacklevel=stacklevel)


def synthetic_batches(
    input_shapes: Mapping[str, Sequence[int]], count: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Make inputs that excite a network roughly as normalised images do.

    Noise whose amplitude falls with the spatial frequency as in natural images (Field, *Relations between the
    statistics of natural images and the response properties of cortical cells*, 1987), mostly shared between the
    channels, each sample with zero mean and unit variance. An input that is not NCHW gets independent Gaussian values.

    Parameters
    ----------
    input_shapes : mapping
        Shape by input name; NCHW for images.
    count : int
        Number of batches.
    seed : int
        The same seed gives the same batches.

    Yields
    ------
    dict
        float32 array by input name.
    """
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield {name: _sample(generator, tuple(shape)) for name, shape in input_shapes.items()}


def _sample(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    noise = generator.standard_normal(shape)
    if len(shape) == 4:
        shared = generator.standard_normal((shape[0], 1, *shape[2:]))
        share = _SHARED_BETWEEN_CHANNELS
        noise = _smooth(np.sqrt(share) * shared + np.sqrt(1.0 - share) * noise)
    per_sample = tuple(range(1, len(shape)))
    if np.prod(shape[1:]) > 1:  # one value per sample has no variance to normalise
        noise -= noise.mean(axis=per_sample, keepdims=True)
        noise /= noise.std(axis=per_sample, keepdims=True)
    return np.asarray(noise, np.float32)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Weight white noise by 1 / frequency over the last two axes; the mean as the lowest frequency there is."""
    height, width = noise.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum = np.fft.rfft2(noise) / np.maximum(frequency, 1.0 / max(height, width))
    return np.fft.irfft2(spectrum, s=(height, width))


def range_from_batch_norm(gamma: np.ndarray, beta: np.ndarray, n: float = 6.0) -> tuple[float, float]:
    """Return a range that holds the output of a batch norm, from its parameters alone.

    Channel c of the output is distributed around ``beta[c]`` with standard deviation ``|gamma[c]|``; the range spans
    ``beta - n |gamma|`` to ``beta + n |gamma|`` over all channels, n = 6, as in Nagel et al., *Data-Free Quantization
    Through Weight Equalization and Bias Correction*, 2019 (arXiv:1906.04721). Clipping it at 0 where a ReLU follows is
    left to the caller.

    Parameters
    ----------
    gamma, beta : np.ndarray
        The batch norm's scale and shift, shape ``[channels]``.
    n : float
        Standard deviations on either side.

    Raises
    ------
    CalibrationError
        When the shapes differ, are empty, or a parameter is not finite.

    Examples
    --------
    >>> range_from_batch_norm(np.array([1.0, -0.5]), np.array([0.0, 4.0]))
    (-6.0, 7.0)
    """
    gamma, beta = np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    if gamma.shape != beta.shape or gamma.size == 0:
        found = f"gamma of shape {gamma.shape}, beta of shape {beta.shape}"
        raise CalibrationError("batch norm", found, "the same, non-empty shape", "check the model's batch norms")
    low, high = float(np.min(beta - n * np.abs(gamma))), float(np.max(beta + n * np.abs(gamma)))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CalibrationError("batch norm", "NaN or infinite parameters", "finite ones", "export the model again")
    return low, high

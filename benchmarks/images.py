"""Synthetic images with the statistics of photographs, for networks that come without data.

White noise is a poor stand-in for a photograph: neighbouring pixels of a photograph are correlated, its amplitude
spectrum falls like 1/f (Field, "Relations between the statistics of natural images and the response properties of
cortical cells", 1987), its colour channels are nearly equal, and brightness and contrast differ from one to the next.
Calibration ranges and convolution outputs depend on all four.
"""

from __future__ import annotations

import numpy as np


def synthetic_images(count: int, shape: tuple[int, int, int] = (3, 224, 224), seed: int = 0) -> list[np.ndarray]:
    """Draw noise with a 1/f amplitude spectrum, correlated over the channels.

    Parameters
    ----------
    count : int
        Number of images.
    shape : tuple of int
        Channels, height, width.
    seed : int
        Image ``i`` of a seed is the same whatever `count` is.

    Returns
    -------
    list of numpy.ndarray
        `count` arrays, float32 ``[1, channels, height, width]``, about zero mean and unit variance over the set, as
        after the usual mean/std normalisation.
    """
    return [_image(np.random.default_rng([seed, index]), shape)[None] for index in range(count)]


def _image(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    luminance = _one_over_f(rng, height, width)
    planes = [luminance + 0.35 * _one_over_f(rng, height, width) for _ in range(channels)]
    contrast, brightness = rng.uniform(0.5, 1.3), rng.normal(0.0, 0.4)
    # Exposure clips a photograph's highlights and shadows; without this the extremes would be Gaussian tails.
    return np.clip(contrast * np.stack(planes) + brightness, -2.2, 2.6).astype(np.float32)


def _one_over_f(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return one plane [height, width] of zero mean and unit variance whose amplitude falls like 1/frequency."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    plane = np.fft.irfft2(spectrum / frequency, s=(height, width))
    return plane / plane.std()

"""Inputs for a model that came without calibration data: made up, fitted to its batch norms, and never silent.

Two things are unknown: what the inputs look like, and in which numbers they come. For the first, pictures are drawn
that share the statistics of photographs. For the second, each usual preprocessing is tried, and the one is taken on
which the first batch norms' outputs are distributed as they were in training: the idea behind the synthetic data of
Cai et al., *ZeroQ: A Novel Zero Shot Quantization Framework*, 2020 (arXiv:2001.00281), without its optimisation of
every pixel.

The ranges of activations are then observed as on real data. Taking them from the batch norms' parameters instead
(beta +- 6 gamma, Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019) was no
better on any network tried.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tvm_int8.passes.batch_norm_outputs import BatchNormOutput
    from tvm_int8.quantization.data import InputSpec

FIRST_BATCH_NORMS = 4
"""How many batch norms are asked: the nearer to the input, the surer the answer."""

_TRIED_BATCHES = 2  # per preprocessing: one of each kind of picture
_SHARED_BETWEEN_CHANNELS = 0.8  # of the variance: the channels of a natural image are mostly its brightness
_LEAVES = 300  # per picture: few places stay uncovered
_TINY_VARIANCE = 1e-12  # keeps channels that are dead in training and here comparable


class CalibrationWarning(UserWarning):
    """Calibration went on, but with less than it should have had."""


@dataclass(frozen=True)
class InputValues:
    """The numbers a network takes: a picture of zero mean and unit variance becomes `clip(mean + std * picture)`."""

    name: str
    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of_pixels(cls, name: str, scale: float, offset: float = 0.0) -> InputValues:
        """`scale * pixel + offset`, of pixels in 0..1 with the mean and deviation usual in photographs."""
        return cls(name, 0.45 * scale + offset, 0.25 * scale, offset, scale + offset)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture in these numbers, float64."""
        return np.clip(self.mean + self.std * picture, self.low, self.high)


STANDARDISED = InputValues("of zero mean and unit variance", 0.0, 1.0)
BYTES = InputValues("bytes", 128.0, 48.0, 0.0, 255.0)
_BLACK, _WHITE = -2.1, 2.6  # standardised by the mean and deviation of ImageNet
USUAL_VALUES = (
    replace(STANDARDISED, low=_BLACK, high=_WHITE),
    InputValues.of_pixels("0..1", 1.0),
    InputValues.of_pixels("-1..1", 2.0, -1.0),
    InputValues.of_pixels("0..255", 255.0),
    InputValues.of_pixels("0..255 less the mean", 255.0, -0.45 * 255.0),
    InputValues("of zero mean and unit variance, divided by 255", 0.0, 1 / 255, _BLACK / 255, _WHITE / 255),  # ESPNet
)


def warn_data_free(values: InputValues | None, stacklevel: int = 3) -> None:
    """Tell the user that ranges are guesses, what was assumed, what that may cost and what to do about it.

    Parameters
    ----------
    values : InputValues or None
        What `fit_input_values` returned.
    stacklevel : int
        As in `warnings.warn`; 3 points at the caller of the function that calls this one.
    """
    if values is None:
        assumption = "no batch norm tells their values: zero mean and unit variance are assumed, 0..255 of bytes"
    else:
        assumption = f"they are taken to be {values.name}, which fits the batch norms best"
    message = (
        f"No calibration data was given: activation ranges are estimated from synthetic inputs; {assumption}. The INT8 "
        "model may be noticeably less accurate than the float one. Pass calibration=... with some 100 to 500 typical "
        "inputs, preprocessed as for inference, or a table made from them with tvm_int8.calibrate(model, data)."
    )
    warnings.warn(CalibrationWarning(message), stacklevel=stacklevel)


def fit_input_values(
    run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]],
    inputs: Sequence[InputSpec],
    batch_norms: Mapping[str, BatchNormOutput],
) -> InputValues | None:
    """Choose the preprocessing on which the batch norms' outputs are distributed most nearly as in training.

    Parameters
    ----------
    run : callable
        The float network: takes a batch, input name -> array; returns at least the names in
        `batch_norms`, each an array [N, C, ...].
    inputs : sequence of InputSpec
        The model's inputs; the same values are chosen for all of them that are float32 images.
    batch_norms : mapping
        What is known of the outputs of the first batch norms, by tensor name.

    Returns
    -------
    InputValues or None
        One of `USUAL_VALUES`; None when there is no batch norm, or no input to choose for.
    """
    if not batch_norms or not any(_is_picture(spec) for spec in inputs):
        return None

    def distance(values: InputValues) -> float:
        observed = [run(batch) for batch in synthetic_batches(inputs, _TRIED_BATCHES, values)]
        return float(
            np.mean(
                [
                    _distance(np.concatenate([tensors[name] for tensors in observed]), output)
                    for name, output in batch_norms.items()
                ]
            )
        )

    return min(USUAL_VALUES, key=distance)


def _distance(values: np.ndarray, expected: BatchNormOutput) -> float:
    """Bhattacharyya distance of two normal distributions, mean over the channels.

    T. Kailath, *The Divergence and Bhattacharyya Distance Measures in Signal Selection*, 1967. It grows with the
    logarithm of a ratio of variances only, so that no single channel decides.
    """
    axes = (0, *range(2, values.ndim))
    mean, variance = values.mean(axes, dtype=np.float64), values.var(axes, dtype=np.float64) + _TINY_VARIANCE
    expected_variance = expected.std**2 + _TINY_VARIANCE
    both = variance + expected_variance
    means = (mean - expected.mean) ** 2 / (4 * both)
    return float(np.mean(means + np.log(both / (2 * np.sqrt(variance * expected_variance))) / 2))


def synthetic_batches(
    inputs: Sequence[InputSpec], count: int, values: InputValues = STANDARDISED, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Make inputs that excite a network roughly as photographs do.

    An image (NCHW) is in turn noise whose amplitude falls with the spatial frequency as in photographs (Field,
    *Relations between the statistics of natural images and the response properties of cortical cells*, 1987), and
    "dead leaves", discs of all sizes that hide one another, for flat regions and sharp edges (Lee, Mumford and Huang,
    *Occlusion Models for Natural Images*, 2001). Its channels are mostly alike. Any other float input gets independent
    Gaussian values, an integer input zeros.

    Parameters
    ----------
    inputs : sequence of InputSpec
        What to make.
    count : int
        Number of batches.
    values : InputValues
        The values of float images; images of bytes are spread over 0..255.
    seed : int
        The same seed gives the same batches.

    Yields
    ------
    dict
        Array of the input's shape and dtype by input name.
    """
    generator = np.random.default_rng(seed)
    for index in range(count):
        draw = _dead_leaves if index % 2 else _smooth_noise
        yield {spec.name: _input(generator, spec, draw, values) for spec in inputs}


def _is_picture(spec: InputSpec) -> bool:
    return spec.dtype.startswith("float") and len(spec.shape) == 4


def _input(generator: np.random.Generator, spec: InputSpec, draw: Callable, values: InputValues) -> np.ndarray:
    if spec.dtype != "uint8" and not spec.dtype.startswith("float"):
        return np.zeros(spec.shape, spec.dtype)
    made = draw(generator, spec.shape) if len(spec.shape) == 4 else generator.standard_normal(spec.shape)
    made = _standardised(made)
    if spec.dtype == "uint8":
        made = BYTES.apply(made)
    elif len(spec.shape) == 4:
        made = values.apply(made)
    return np.asarray(made, spec.dtype)


def _standardised(samples: np.ndarray) -> np.ndarray:
    """Each sample with zero mean and unit variance; one value per sample has no variance to normalise."""
    if np.prod(samples.shape[1:]) <= 1:
        return samples
    per_sample = tuple(range(1, samples.ndim))
    samples = samples - samples.mean(axis=per_sample, keepdims=True)
    return samples / samples.std(axis=per_sample, keepdims=True)


def _smooth_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """White noise weighted by 1 / frequency over the last two axes; the mean as the lowest frequency there is."""
    height, width = shape[-2:]
    noise, shared = generator.standard_normal(shape), generator.standard_normal((shape[0], 1, height, width))
    noise = np.sqrt(_SHARED_BETWEEN_CHANNELS) * shared + np.sqrt(1.0 - _SHARED_BETWEEN_CHANNELS) * noise
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum = np.fft.rfft2(noise) / np.maximum(frequency, 1.0 / max(height, width))
    return np.fft.irfft2(spectrum, s=(height, width))


def _dead_leaves(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Discs painted over one another; the density of their radii falls with the third power, as of things in sight."""
    channels, height, width = shape[1:]
    smallest, largest = max(height, width) / 40, max(height, width) / 2
    rows, columns = np.ogrid[:height, :width]
    pictures = 0.05 * generator.standard_normal(shape)
    for picture in pictures:
        fraction = generator.uniform(size=_LEAVES)
        radii = 1 / np.sqrt(fraction / smallest**2 + (1 - fraction) / largest**2)
        centres = generator.uniform((0, 0), (height, width), (_LEAVES, 2))
        brightness = generator.uniform(-1, 1, (_LEAVES, 1))
        colours = np.clip(brightness + 0.25 * generator.standard_normal((_LEAVES, channels)), -1, 1)
        leaves = np.zeros_like(picture)
        for radius, (row, column), colour in zip(radii, centres, colours, strict=True):
            top, left = (max(int(centre - radius), 0) for centre in (row, column))
            down, across = slice(top, int(row + radius) + 1), slice(left, int(column + radius) + 1)
            inside = (rows[down] - row) ** 2 + (columns[:, across] - column) ** 2 <= radius**2
            leaves[:, down, across][:, inside] = colour[:, None]
        picture += leaves
    return pictures

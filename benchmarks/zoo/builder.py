"""Layers with weights, drawn so that activations are as healthy as in a trained network, through any depth.

A batch norm takes its mean and variance from what arrives there for a few synthetic images. A layer without batch norm
is scaled and shifted as if one had been folded into it. `benchmarks.initialise` does the same for finished graphs and
cites the literature.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.zoo import numpy_layers
from benchmarks.zoo.operators import Operators, Tensor

_SWEEP_IMAGE = 128
_FEW_SAMPLES = 16  # fewer per channel than this: the mean is still of use, a variance of its own is not
# Positive on average: with zero-mean inputs to every ReLU a deep random network amplifies rounding errors.
_MEAN = 0.7
_BRANCH = 0.5

Kernel = int | tuple[int, int]


class GraphBuilder(Operators):
    """Writes an ONNX graph layer by layer.

    Parameters
    ----------
    name : str
        Of the graph.
    input_shape : tuple of int
        Batch, channels, height, width.
    seed : int
        Of the weights.
    true_size : bool
        Take the statistics from images of the input's size (square), which graphs with sizes in them need: dense layers
        on pixels, reshapes, several outputs. Otherwise from two small ones, and the weights do not depend on the size.
    """

    def __init__(self, name: str, input_shape: tuple[int, int, int, int], seed: int = 0, true_size: bool = False):
        size = input_shape[2] if true_size else _SWEEP_IMAGE
        count = max(4, 2 * _SWEEP_IMAGE**2 // size**2) if true_size else 2
        super().__init__(name, input_shape, (count, size))
        self.rng = np.random.default_rng(seed)

    def conv_bn(
        self, x: Tensor, name: str, channels: int, kernel: Kernel, stride: int = 1, branch: bool = False, **window
    ) -> Tensor:
        """Convolution without bias, then batch norm.

        `branch` marks the last layer of a residual branch, which adds little to the trunk it joins: its scale is
        small, as training makes it. `window` is as in `conv`.
        """
        y = self.plain_conv(x, name, channels, kernel, stride, f"{name}/conv", **window)
        return self.batch_norm(y, f"{name}/bn", _BRANCH if branch else 1.0)

    def plain_conv(
        self, x: Tensor, name: str, channels: int, kernel: Kernel, stride: int = 1, output: str = "", **window
    ) -> Tensor:
        """Convolution without bias, as He initialisation leaves it; `output` is its name if not `name`."""
        weight = self._he((channels, x.channels // window.get("groups", 1), *_pair(kernel)))
        value, attributes = _convolve(x.value, weight, stride, **window)
        inputs = [x.name, self._store(f"{name}/weight", weight)]
        return self._node("Conv", output or name, inputs, value, **attributes)

    def conv(
        self,
        x: Tensor,
        name: str,
        channels: int,
        kernel: Kernel,
        stride: int = 1,
        mean: float = _MEAN,
        branch: bool = False,
        **window,
    ) -> Tensor:
        """Convolution with bias.

        Parameters
        ----------
        x : Tensor
            Input.
        name : str
            Of the node and the output.
        channels : int
            Of the output.
        kernel : int or tuple of int
            Vertical and horizontal size.
        stride : int
            Along both axes.
        mean : float
            Of the output, in standard deviations; 0 where no activation follows.
        branch : bool
            As in `conv_bn`.
        **window
            `pad` (an int; default: what keeps the size), `groups`, `dilation`.

        Returns
        -------
        Tensor
            Every channel with a mean and a variance of its own, of the order of one.
        """
        weight = self._he((channels, x.channels // window.get("groups", 1), *_pair(kernel)))
        value, attributes = _convolve(x.value, weight, stride, **window)
        gain, shift = self._normalisation(value, _BRANCH if branch else 1.0, mean)
        inputs = [x.name, self._store(f"{name}/weight", weight * gain[:, None, None, None])]
        inputs.append(self._store(f"{name}/bias", shift))
        return self._node("Conv", name, inputs, value * _planes(gain) + _planes(shift), **attributes)

    def conv_transpose(
        self, x: Tensor, name: str, channels: int, kernel: int, stride: int, pad: int = 0, output_pad: int = 0
    ) -> Tensor:
        """Transposed convolution with bias, no activation behind it."""
        weight = self._he((x.channels, channels, kernel, kernel))
        value = numpy_layers.conv2d_transpose(x.value, weight, stride, pad, output_pad)
        gain, shift = self._normalisation(value, 1.0, 0.0)
        inputs = [x.name, self._store(f"{name}/weight", weight * gain[:, None, None])]
        inputs.append(self._store(f"{name}/bias", shift))
        return self._node(
            "ConvTranspose",
            name,
            inputs,
            value * _planes(gain) + _planes(shift),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            output_padding=[output_pad] * 2,
        )

    def batch_norm(self, x: Tensor, name: str, share: float = 1.0, epsilon: float = 1e-5) -> Tensor:
        """Batch norm with the statistics of `x`; `share` scales its output."""
        scale, bias, mean, variance = self._statistics(x.value, share, _MEAN)
        factor = scale / np.sqrt(variance + epsilon)
        value = x.value * _planes(factor) + _planes(bias - mean * factor)
        fields = {"scale": scale, "bias": bias, "mean": mean, "var": variance}
        inputs = [x.name, *(self._store(f"{name}/{field}", array) for field, array in fields.items())]
        return self._node("BatchNormalization", name, inputs, value, epsilon=epsilon)

    def prelu(self, x: Tensor, name: str) -> Tensor:
        """ReLU with a slope per channel."""
        slope = self.rng.uniform(0.0, 0.4, (x.channels, 1, 1)).astype(np.float32)
        inputs = [x.name, self._store(f"{name}/slope", slope)]
        return self._node("PRelu", name, inputs, np.where(x.value < 0, slope * x.value, x.value))

    def l2_norm(self, x: Tensor, name: str, scale: float = 20.0) -> Tensor:
        """Every pixel divided by its norm over the channels, then a scale per channel (Liu et al., ParseNet, 2015)."""
        two = self._store(f"{name}/two", np.array([2], np.float32))
        axis = self._store(f"{name}/axis", np.array([1], np.int64))
        epsilon = self._store(f"{name}/epsilon", np.array([1e-10], np.float32))
        factor = self._store(f"{name}/scale", np.full((1, x.channels, 1, 1), scale, np.float32))
        squares = self._node("Pow", f"{name}/pow", [x.name, two], x.value**2)
        value = squares.value.sum(1, keepdims=True)
        total = self._node("ReduceSum", f"{name}/sum", [squares.name, axis], value, keepdims=1)
        root = self._node("Sqrt", f"{name}/sqrt", [total.name], np.sqrt(value))
        norm = self._node("Add", f"{name}/norm", [root.name, epsilon], root.value + 1e-10)
        y = self._node("Div", f"{name}/div", [x.name, norm.name], x.value / norm.value)
        return self._node("Mul", name, [y.name, factor], y.value * scale)

    def excitation_conv(self, x: Tensor, name: str, channels: int, mean: float = 0.0) -> Tensor:
        """1x1 convolution of pooled channels inside squeeze-and-excitation.

        It is scaled as a whole: gates differ by channel much more than by image, and normalising over the few images
        would make them the most sensitive part of the network.
        """
        weight = self._he((channels, x.channels, 1, 1))
        value = numpy_layers.conv2d(x.value, weight, (1, 1), (0,) * 4)
        gain = np.float32(1.0 / value.std())
        bias = self.rng.normal(mean, 0.5, channels).astype(np.float32) - gain * value.mean(dtype=np.float32)
        inputs = [x.name, self._store(f"{name}/weight", weight * gain), self._store(f"{name}/bias", bias)]
        return self._node("Conv", name, inputs, value * gain + _planes(bias), kernel_shape=[1, 1])

    def dense(self, x: Tensor, name: str, units: int) -> Tensor:
        """Dense layer [N, units] in front of an activation."""
        weight = self._he((units, x.channels))
        value = x.value @ weight.T
        gain, shift = self._normalisation(value, 1.0, _MEAN)
        inputs = [x.name, self._store(f"{name}/weight", weight * gain[:, None]), self._store(f"{name}/bias", shift)]
        return self._node("Gemm", name, inputs, value * gain + shift, transB=1)

    def logits(self, x: Tensor, classes: int) -> Tensor:
        """Dense layer without activation: "logits" [N, classes] of [N, C]."""
        weight = self._he((classes, x.channels))
        y = x.value @ weight.T
        weight *= np.float32(2.0 / y.std())
        # Without its mean over the images an output tells them apart, which is what a trained classifier does.
        bias = self.rng.normal(0.0, 0.5, classes).astype(np.float32) - (x.value @ weight.T).mean(0)
        inputs = [x.name, self._store("fc/weight", weight), self._store("fc/bias", bias)]
        return self._node("Gemm", "logits", inputs, x.value @ weight.T + bias, transB=1)

    def classifier(self, x: Tensor, classes: int) -> Tensor:
        """Global average pooling, flatten and a dense layer: logits [N, classes]."""
        return self.logits(self.flatten(self.global_pool(x, "pool"), "flatten"), classes)

    def _normalisation(self, value: np.ndarray, share: float, mean: float) -> tuple[np.ndarray, np.ndarray]:
        """Gain and shift per channel that a batch norm on `value` would have, float32 [C]."""
        scale, bias, found, variance = self._statistics(value, share, mean)
        gain = scale / np.sqrt(variance)
        return gain, bias - found * gain

    def _statistics(self, value: np.ndarray, share: float, mean: float) -> tuple[np.ndarray, ...]:
        """Scale and bias to draw, mean and variance to take away, float32 [C] each."""
        axes = (0, *range(2, value.ndim))
        channels = int(value.shape[1])
        found, variance = value.mean(axes), value.var(axes)
        if value.size // channels < _FEW_SAMPLES:
            variance = np.full_like(variance, variance.mean())
        scale = (share * self.rng.uniform(0.5, 1.5, channels)).astype(np.float32)
        bias = (share * self.rng.normal(mean, 0.5, channels)).astype(np.float32)
        return scale, bias, found, np.maximum(variance, np.float32(1e-6))

    def _he(self, shape: tuple[int, ...]) -> np.ndarray:
        weight = self.rng.standard_normal(shape, np.float32)
        weight *= np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
        return weight


def scale_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Return `width` times `channels`, as a multiple of `divisor` that is not below 90 % of it (MobileNet's rule)."""
    scaled = max(divisor, int(channels * width + divisor / 2) // divisor * divisor)
    return scaled + divisor if scaled < 0.9 * channels * width else scaled


def scale_depth(blocks: int, depth: float) -> int:
    """Return `depth` times `blocks`, rounded up."""
    return math.ceil(blocks * depth)


def _convolve(
    x: np.ndarray, weight: np.ndarray, stride: int, pad: int | None = None, groups: int = 1, dilation: int = 1
) -> tuple[np.ndarray, dict]:
    """Return the convolution's value and the attributes of its node."""
    kh, kw = weight.shape[2:]
    vertical, horizontal = (dilation * (kh // 2), dilation * (kw // 2)) if pad is None else (pad, pad)
    pads = (vertical, horizontal, vertical, horizontal)
    attributes = {"kernel_shape": [kh, kw], "strides": [stride] * 2, "pads": list(pads), "group": groups}
    if dilation > 1:
        attributes["dilations"] = [dilation] * 2
    return numpy_layers.conv2d(x, weight, (stride,) * 2, pads, groups, (dilation,) * 2), attributes


def _pair(kernel: Kernel) -> tuple[int, int]:
    return (kernel, kernel) if isinstance(kernel, int) else kernel


def _planes(vector: np.ndarray) -> np.ndarray:
    return vector[:, None, None]

"""What convolutions read of images of bytes: the bytes themselves, however the network normalises them.

    image = dequantize(bytes, 1, 0);  x = image * a + b;  conv2d(x, W)
        ->   conv2d(dequantize(bytes, 1, z), W * a) + (W * a)(z - m)          m = -b / a, z = rint(m), per channel

The scales a are in the weights and the zero points z in the integer bias, so no rounding is added to the camera's own.
Outside of the image a convolution reads x = 0, that is m, of which z stands there: wrong by half a grey level at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .byte_inputs import is_byte_image
from .channel_affine import read_affine
from .convolution_weights import is_depthwise, scaled_inputs
from .dataflow import Dataflow
from .expressions import Expr, Var, op_name, shape_of

IMAGE_CHANNELS = 4  # kernels pad images of up to so many channels with a value per channel
DECIMALS = 3  # of a mean: float32 scales and shifts do not tell more


@dataclass(frozen=True)
class Pixels:
    """x[c] = scale[c] * (bytes[c] - zero_point[c] - rest[c]), |rest| <= 1/2 unless the zero point was clipped."""

    bytes: Var
    scale: np.ndarray
    zero_point: np.ndarray
    rest: np.ndarray

    def weight(self, call: Expr) -> np.ndarray:
        """The weight with which a convolution of x reads bytes less zero points, as it lies."""
        return scaled_inputs(call, self.scale)

    def shift(self, call: Expr) -> np.ndarray | None:
        """What the rest adds to a convolution's outputs, float32 [1, O, 1, 1]; None for nothing."""
        if not self.rest.any():
            return None
        weight = scaled_inputs(call, self.scale * self.rest)
        return -weight.sum((1, 2, 3), np.float64).astype(np.float32).reshape(1, -1, 1, 1)

    def mean(self, mean: np.ndarray) -> np.ndarray:
        """The mean [C] of bytes less zero points where that of x is `mean`."""
        return mean / self.scale + self.rest


def pixels_of(flow: Dataflow, var: Var) -> Pixels | None:
    """The bytes behind a tensor that is an image of them, scaled and shifted; None for any other, and for images."""
    if len(shape_of(var)) != 4 or is_byte_image(flow.value(var)):
        return None
    channels = shape_of(var)[1]
    scale, shift, call = np.ones(channels), np.zeros(channels), flow.value(var)
    while not is_byte_image(call):
        found = read_affine(call, 1) if op_name(call) else None
        if found is None:
            return None
        source, affine = found
        scale, shift, call = scale * affine.scale, scale * affine.shift + shift, flow.value(source)
    if not scale.all():
        return None
    mean = -shift / scale
    zero_point = np.clip(np.rint(mean.round(DECIMALS)), 0, 255)
    return Pixels(call.args[0], scale, zero_point.astype(np.int64), mean - zero_point)


def reads_pixels(call: Expr, var: Var, pixels: Pixels) -> bool:
    """Whether a consumer of `var` is a convolution that can read its bytes."""
    if op_name(call) != "nn.conv2d" or call.args[0] != var:
        return False
    if not any(int(pad) for pad in call.attrs.padding):
        return True
    if np.abs(pixels.rest).max().round(DECIMALS) > 0.5:
        return False
    one_for_all = (pixels.zero_point == pixels.zero_point[0]).all()
    return one_for_all or is_depthwise(call) or can_pad_by_channel(call)


def can_pad_by_channel(call: Expr) -> bool:
    """Whether a convolution's data is an image that a kernel pads with a value per channel while it packs it."""
    shape = shape_of(call.args[0])
    return int(call.attrs.groups) == 1 and shape[1] <= IMAGE_CHANNELS and shape[2:] != (1, 1)

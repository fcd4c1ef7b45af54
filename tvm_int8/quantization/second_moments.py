"""What a convolution reads on calibration data: means and second moments of its patches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from tvm_int8.passes.expressions import const_value, op_name, shape_of

LARGEST = 8192
"""Inputs per output beyond which second moments are not kept: they would take more than 256 MB."""
DAMPING = 0.01
"""Of the mean second moment, added to each: what a few inputs never showed may still come."""
_PATCHES_PER_INPUT = 4  # of a weight, over all samples: fewer would leave second moments that are singular


@dataclass
class SecondMoments:
    """Of the patches x [K] of one convolution, by group: E[x] [G, K] and E[x x'] [G, K, K].

    Parameters
    ----------
    call : Call
        The convolution of the float network.
    samples : int
        How many inputs are going to come.
    """

    call: relax.Call
    samples: int
    count: int = 0
    _sum: np.ndarray | float = 0.0
    _products: np.ndarray | float = 0.0
    _generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def mean(self) -> np.ndarray:
        """E[x], float64 [G, K]."""
        return np.asarray(self._sum) / max(self.count, 1)

    @property
    def exact_mean(self) -> np.ndarray:
        """E[x], float64 [G, K], of what the float network's convolution reads: here the same."""
        return self.mean

    def aim(self, weight: np.ndarray, central: bool) -> np.ndarray:
        """What rounded weights are to come near, given the float network's [G, O, K]: these."""
        return weight

    @property
    def products(self) -> np.ndarray:
        """E[x x'], float32 [G, K, K]."""
        return np.asarray(self._products, np.float32) / max(self.count, 1)

    @property
    def central(self) -> np.ndarray:
        """E[(x - E[x]) (x - E[x])'], float32 [G, K, K]; what float32 cannot tell from none is added to variances."""
        products, mean = self.products, self.mean
        central = products - np.einsum("gk,gl->gkl", mean, mean).astype(np.float32)
        every = np.arange(central.shape[1])
        central[:, every, every] += np.float32(1e-5) * products[:, every, every].mean(1, keepdims=True)
        return central

    @staticmethod
    def applies(call: relax.Call) -> bool:
        """Whether a convolution's patches can be looked at."""
        return op_name(call) == "nn.conv2d" and int(np.prod(const_value(call.args[1]).shape[1:])) <= LARGEST

    def update(self, data: np.ndarray) -> None:
        """Take in what the convolution read of a batch, float [N, C, H, W]: some of its patches, chosen by chance."""
        self.take(self.patches(data, self.chosen(data.shape)))

    def take(self, patches: np.ndarray) -> None:
        """Take in patches, float32 [P, G, K]."""
        self.count += patches.shape[0]
        self._sum = self._sum + patches.sum(0, dtype=np.float64)
        by_group = np.ascontiguousarray(patches.transpose(1, 2, 0))
        self._products = self._products + np.matmul(by_group, by_group.transpose(0, 2, 1))

    def chosen(self, shape: tuple[int, ...]) -> np.ndarray:
        """Which pixels of a batch's results to look at."""
        _, _, oh, ow = shape_of(self.call)
        patch = int(np.prod(const_value(self.call.args[1]).shape[1:]))
        wanted = -(-_PATCHES_PER_INPUT * patch // self.samples)
        return self._pixels(shape[0] * oh * ow, max(wanted, 64))

    def patches(self, data: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Float32 [P, G, K]."""
        attrs, (_, _, oh, ow) = self.call.attrs, shape_of(self.call)
        groups, (_, in_group, kh, kw) = int(attrs.groups), const_value(self.call.args[1]).shape
        top, left, bottom, right = (int(pad) for pad in attrs.padding)
        padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
        image, row, column = np.unravel_index(pixels, (data.shape[0], oh, ow))
        rows = row[:, None, None] * int(attrs.strides[0]) + np.arange(kh)[None, :, None] * int(attrs.dilation[0])
        columns = column[:, None, None] * int(attrs.strides[1]) + np.arange(kw)[None, None, :] * int(attrs.dilation[1])
        found = padded[image[:, None, None], :, rows, columns]  # [P, kh, kw, C]
        found = found.reshape(len(pixels), kh, kw, groups, in_group).transpose(0, 3, 4, 1, 2)
        return np.ascontiguousarray(found, np.float32).reshape(len(pixels), groups, -1)

    def _pixels(self, available: int, wanted: int) -> np.ndarray:
        if available <= wanted:
            return np.arange(available)
        return np.sort(self._generator.choice(available, wanted, replace=False))


def damped(moments: np.ndarray, share: float = DAMPING) -> np.ndarray:
    """Second moments, float32 [K, K], with a share of their mean on the diagonal."""
    moments = np.array(moments, np.float32)
    np.fill_diagonal(moments, moments.diagonal() + np.float32(share) * moments.diagonal().mean())
    return moments

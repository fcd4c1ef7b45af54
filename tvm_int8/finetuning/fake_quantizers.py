"""Rounding in PyTorch, to the very values that the integers stand for, with gradients that pass straight through.

    activations    scale * (clamp(round(x / scale) + zero point) - zero point)       gradient 1, 0 where clamped
    weights        scale * (step * clamp(round(u)) + lowest)                         gradient that of scale * step * u
    biases         unit * round(bias / unit), unit the data's step times the weight's scale         gradient 1

The last counts: of few bits, a unit is a hundredth of the result's step, and one in a hundred of these would differ.
Halves are rounded to even, as everywhere. A weight is trained as its share of the range of its output channel, so one
learning rate fits all layers and bit-widths, and begins at most a quarter of a step from the integer it has.

Source     straight-through estimator: Bengio, Leonard, Courville 2013 (arXiv:1308.3432); scales that stay: Jacob et al.
           2018 (arXiv:1712.05877).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from tvm import relax

from tvm_int8.passes.linear_layers import scale_inputs
from tvm_int8.passes.quantizers import ActivationQuantizer, WeightQuantizer

_WITHIN = 0.25
"""Of a step: how far a weight begins at most from the integer it has, so that none changes at the first step."""


def rounded(x: torch.Tensor, quantizer: ActivationQuantizer) -> torch.Tensor:
    """A tensor [N, C, ...] as its integers stand for it; channels may have scales of their own."""
    limits = quantizer.limits
    if not quantizer.per_channel:
        return torch.fake_quantize_per_tensor_affine(
            x, float(quantizer.scale), int(quantizer.zero_point.reshape(())), *limits
        )
    scale, zero_point = torch.from_numpy(quantizer.scale.copy()), torch.from_numpy(quantizer.zero_point.copy())
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point.to(torch.int32), 1, *limits)


class TrainedWeight(nn.Module):
    """Weight and bias of a convolution, rounded as its integers are.

    Parameters
    ----------
    call : relax.Call
        The convolution, of the float network.
    quantizer : WeightQuantizer
    divisor : float64 [C] or None
        What the convolution's data are divided by before integers meet: `Quantizers.divisor`.
    data_step : float64, [] or [O]
        What one is worth of the integers that it reads.
    bias : float64 [O], optional
        What the network adds behind it, which is one integer together with what is trained.
    """

    share: nn.Parameter
    shift: nn.Parameter

    def __init__(
        self,
        call: relax.Call,
        quantizer: WeightQuantizer,
        divisor: np.ndarray | None,
        data_step: np.ndarray,
        bias: np.ndarray | None = None,
    ):
        super().__init__()
        self._quantizer = quantizer
        spread = [-1 if i == quantizer.axis else 1 for i in range(quantizer.values.ndim)]
        scale = quantizer.scale.reshape(spread if quantizer.scale.ndim else [])
        levels = quantizer.levels.spread(spread)
        lowest, step, least, most = levels.lowest, levels.step, levels.least, levels.most
        codes = (quantizer.values - lowest) / step
        exact = (quantizer.exact / scale - lowest) / step
        exact = np.clip(np.clip(exact, codes - _WITHIN, codes + _WITHIN), least, most)
        others = tuple(i for i in range(codes.ndim) if i != quantizer.axis)
        dead = ~quantizer.values.any(others, keepdims=True)  # its scale means nothing
        reach = np.where(dead, 0.0, (most - least) / 2)
        middle = np.where(dead, codes.max(others, keepdims=True), (most + least) / 2)
        self.share = nn.Parameter(_tensor((exact - middle) / np.where(dead, 1.0, reach)))
        real = effective(call, quantizer.real, divisor)
        unit = np.sqrt(np.square(real).sum(others))
        self._buffers_of(scale=scale, lowest=lowest, step=step, least=least, most=most)
        self._buffers_of(reach=reach, middle=middle, unit=np.where(unit > 0, unit, 1.0))
        ones = np.ones(quantizer.values.shape)
        self._buffers_of(factor=np.ones(()) if divisor is None else effective(call, ones, divisor))
        sums = np.broadcast_to(data_step * quantizer.scale.astype(np.float64), unit.shape)
        self._buffers_of(sums=sums, behind=np.zeros(unit.shape) if bias is None else bias)
        correction = quantizer.correction
        began = np.zeros(unit.shape) if correction is None else correction.reshape(-1)
        self.shift = nn.Parameter(_tensor(began / np.where(unit > 0, unit, 1.0)))

    def _buffers_of(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self.register_buffer(name, _tensor(array), persistent=False)

    def codes(self) -> torch.Tensor:
        """The integers, counted from the lowest in steps, of float32."""
        exact = self.share * self.reach + self.middle
        return exact + (exact.round().clamp(self.least, self.most) - exact).detach()

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight for real data, and what is added to the convolution, [O]."""
        whole = (self.shift * self.unit + self.behind) / self.sums
        bias = (whole + (whole.round() - whole).detach()) * self.sums - self.behind
        return (self.codes() * self.step + self.lowest) * self.scale * self.factor, bias

    @torch.no_grad()
    def keep_within_range(self) -> None:
        """Weights beyond the last level would have a long way back."""
        self.share.clamp_(-1.0, 1.0)

    @torch.no_grad()
    def quantizer(self) -> WeightQuantizer:
        """The trained integers; what they stand for is what they were made of, and the bias is the correction."""
        values = (self.codes() * self.step + self.lowest).round().numpy().astype(np.int8)
        correction = (self.shift * self.unit).numpy().reshape(1, -1, *[1] * (values.ndim - 2))
        found = replace(self._quantizer, values=values, correction=correction)
        return replace(found, exact=found.real.astype(np.float32))


def effective(call: relax.Call, weight: np.ndarray, divisor: np.ndarray | None) -> np.ndarray:
    """The weight that real data meet, of the one that integers do."""
    return weight if divisor is None else scale_inputs(call, weight, 1.0 / divisor)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))

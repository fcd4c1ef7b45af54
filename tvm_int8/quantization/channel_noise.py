"""A layer's bits, shared among its output channels: not all of its weights matter equally.

    minimise  sum_o use_o error_o(b_o)      subject to  sum_o b_o <= budget

error_o(b) is the power of the error that channel o's results have with b bits, on what the layer reads; use_o what the
network's outputs make of a unit of it, measured with nothing but this channel rounded. Every channel has as many
weights as the next, so spending the budget bit by bit where it lowers the noise most, on the convex hulls of the
channels' curves, is exact for every budget that it stops at (reverse water-filling: Cover and Thomas, *Elements of
Information Theory*, 2006, section 10.3.3; for measured curves Shoham and Gersho, *Efficient bit allocation for an
arbitrary set of quantizers*, 1988). That makes one curve of noise against average bits of each layer, and layers
compete with these.

Where measuring every channel would take too long, all of a layer's count the same: then it is the energy of the layer's
error that is least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from tvm_int8.passes.quantizers import WeightQuantizer
from tvm_int8.quantization.choice_knapsack import lower_hull
from tvm_int8.quantization.layer_noise import NoiseByBits, WeightsByBits, on_lines
from tvm_int8.quantization.learned_rounding import row_errors
from tvm_int8.quantization.output_noise import MACS_PER_SECOND, SECONDS_PER_RUN, Batch, OutputNoise
from tvm_int8.quantization.simulated_network import SimulatedNetwork

STEPS_PER_BIT = 4
"""Of a layer's average that are offered to the choice among layers."""
PROBED_BITS = (2, 4, 6)
"""Of the one channel that is rounded; in between, what an error counts is taken to change evenly."""
SECONDS = 40.0
"""What probing channels may take, about."""
MOST_INPUTS, FEWEST_INPUTS = 16, 2
SECONDS_PER_PACKING = 1e-3
DAMPING = 0.02
"""Of the mean use, added to each: what a few inputs never showed may still come."""


@dataclass(frozen=True, eq=False)
class ChannelNoise:
    """Of one layer's output channels.

    Parameters
    ----------
    own : mapping of int to float64 [O]
        Bits to the squared error of a channel's weights, relative to the square of all the layer's.
    output : mapping of int to float64 [O]
        Bits to its part in the noise at the outputs, in any unit.
    """

    own: Mapping[int, np.ndarray]
    output: Mapping[int, np.ndarray]

    def shared(self, noise: NoiseByBits) -> NoiseByBits:
        """The layer's noise with bits shared among channels, from the least of its widths to the largest.

        Measured noise of equal bits, times what sharing lowers of the sum over channels.
        """
        bits = sorted(noise.output)
        own, output = (np.array(list(on_lines(part, bits).values())) for part in (self.own, self.output))
        place = {width: i for i, width in enumerate(bits)}
        every = np.arange(output.shape[1])
        lost: dict[float, float] = {}
        reached: dict[float, float] = {}
        channels: dict[float, tuple[int, ...]] = {}
        equal = on_lines({width: float(row.sum()) for width, row in zip(bits, output, strict=True)}, bits)
        for widths in _choices(bits, output):
            average = float(widths.mean())
            if np.ptp(widths) == 0:
                lost[average], reached[average] = noise.own[widths[0]], noise.output[widths[0]]
                continue
            rows = np.array([place[width] for width in widths])
            part = output[rows, every].sum() / on_lines(equal, [average])[average]
            lost[average] = float(own[rows, every].sum())
            reached[average] = on_lines(noise.output, [average])[average] * part
            channels[average] = tuple(int(width) for width in widths)
        return NoiseByBits(noise.name, noise.count, lost, reached, channels)


def _choices(bits: Sequence[int], output: np.ndarray) -> Iterator[np.ndarray]:
    """Widths [O], from all the least to all the largest; `output` is [len(bits), O]."""
    steps = []
    for channel in range(output.shape[1]):
        hull = lower_hull(zip(bits, output[:, channel], strict=True))
        lines = np.diff(hull, axis=0)
        steps += [(fall / up, channel, int(top)) for (up, fall), top in zip(lines, hull[1:, 0], strict=True)]
    widths = np.full(output.shape[1], bits[0])
    targets = np.arange(1, (bits[-1] - bits[0]) * STEPS_PER_BIT + 1) / STEPS_PER_BIT + bits[0]
    yield widths.copy()
    total, target = int(widths.sum()), iter(targets * len(widths))
    limit = next(target, np.inf)
    for _, channel, top in sorted(steps):
        total += top - int(widths[channel])
        if total > limit:
            yield widths.copy()
            while total > limit:
                limit = next(target, np.inf)
        widths[channel] = top
    yield widths.copy()
    if widths.min() < bits[-1]:
        yield np.full(len(widths), bits[-1])


def measure_channels(
    weights: WeightsByBits,
    layers: Mapping[str, str],
    bits: Sequence[int],
    network: SimulatedNetwork,
    batches: Sequence[Batch],
    progress: bool = True,
) -> list[ChannelNoise]:
    """Measure all channels of all layers.

    Parameters
    ----------
    weights : WeightsByBits
    layers : mapping of str to str
        What a convolution binds -> its layer's name.
    bits : sequence of int
        Widths whose errors are computed.
    network : SimulatedNetwork
        Is left rounding nothing.
    batches : sequence of batches
        The first of these are what channels are probed on.
    progress : bool
    """
    channels = {name: weights(name, bits[0]).values.shape[weights(name, bits[0]).axis] for name in layers}
    probed = sorted({min(bits, key=lambda own: abs(own - wanted)) for wanted in PROBED_BITS})
    inputs = _affordable(network, len(probed) * sum(channels.values()), len(batches))
    noise = OutputNoise(network, batches[:inputs]) if inputs else None
    found = []
    with tqdm(total=sum(channels.values()), desc="channels", disable=None if progress else True) as bar:
        for name in layers:
            errors = {width: _errors(weights, name, width) for width in bits}
            output = {width: power for width, (_, power) in errors.items()}
            if noise is not None:
                uses = {width: _use(weights, name, width, output[width], noise) for width in probed}
                ends = [min(max(width, probed[0]), probed[-1]) for width in bits]
                use = on_lines(uses, ends)
                output = {width: use[end] * output[width] for width, end in zip(bits, ends, strict=True)}
            found.append(ChannelNoise({width: lost for width, (lost, _) in errors.items()}, output))
            bar.update(channels[name])
    return found


def _affordable(network: SimulatedNetwork, probes: int, most: int) -> int:
    """How many inputs channels can be probed on; 0: not enough."""
    seconds = SECONDS / probes - SECONDS_PER_PACKING
    inputs = int(seconds / (SECONDS_PER_RUN + network.macs / MACS_PER_SECOND))
    return min(inputs, most, MOST_INPUTS) if inputs >= FEWEST_INPUTS else 0


def _errors(weights: WeightsByBits, name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of a layer's channels, [O] each: of weights, relative to all, and of results."""
    quantizer = weights(name, bits)
    axis = quantizer.axis
    error = np.moveaxis(quantizer.real - quantizer.exact, axis, 0)
    square = np.square(error)
    own = square.reshape(len(square), -1).sum(1) / max(float(np.square(quantizer.exact, dtype=np.float64).sum()), 1e-30)
    if name in weights.moments:
        met = weights.moments[name]
        moments = met.central if weights.correct_bias else met.products
        rows = error.reshape(len(moments), len(error) // len(moments), -1)
        return own, np.concatenate([row_errors(group, h) for group, h in zip(rows, moments, strict=True)])
    importance = weights.importance(name)
    if importance is not None:
        square = square * np.moveaxis(np.broadcast_to(importance, quantizer.exact.shape), axis, 0)
    return own, square.reshape(len(square), -1).sum(1)


def _use(weights: WeightsByBits, name: str, bits: int, power: np.ndarray, noise: OutputNoise) -> np.ndarray:
    """Noise at the outputs for a unit of the error of each channel's results, [O]."""
    quantizer, use = weights(name, bits), np.zeros(len(power))
    for channel in np.flatnonzero(power):
        noise.network.set_weight(name, _one_channel(quantizer, int(channel)))
        use[channel] = noise.measure() / power[channel]
    noise.network.set_weight(name, None)
    return use + DAMPING * use.mean() if use.any() else np.ones(len(power))


@dataclass(frozen=True)
class _OneChannel(WeightQuantizer):
    """Rounds nothing but one output channel."""

    channel: int = 0

    @property
    def real(self) -> np.ndarray:
        real, rounded = self.exact.astype(np.float64), super().real
        place = tuple(self.channel if i == self.axis else slice(None) for i in range(real.ndim))
        real[place] = rounded[place]
        return real


def _one_channel(quantizer: WeightQuantizer, channel: int) -> WeightQuantizer:
    parts = {name: getattr(quantizer, name) for name in quantizer.__dataclass_fields__}
    if quantizer.correction is not None:
        own = np.arange(quantizer.correction.size) % quantizer.values.shape[quantizer.axis] == channel
        parts["correction"] = quantizer.correction * own.reshape(1, -1, 1, 1)
    return _OneChannel(**parts, channel=channel)

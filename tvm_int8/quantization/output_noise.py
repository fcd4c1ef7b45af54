"""How much noise a choice of quantisers puts into a network's outputs: the one measure of searches and rankings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tvm_int8.quantization.simulated_network import SimulatedNetwork

Batch = Mapping[str, np.ndarray]
SECONDS = 40.0
"""What a search may take, about: large networks are tried on fewer inputs."""
MACS_PER_SECOND, SECONDS_PER_RUN = 20e9, 5e-4
FEWEST = 2


class OutputNoise:
    """Noise relative to the signal, at the outputs of a simulated network on some batches.

    Parameters
    ----------
    network : SimulatedNetwork
        Left rounding nothing.
    batches : sequence of batches
        Input name -> array.
    """

    def __init__(self, network: SimulatedNetwork, batches: Sequence[Batch]):
        self.network, self.batches = network, batches
        network.apply(None)
        self._exact = [self._outputs(batch) for batch in batches]
        self._signal = [sum(float((array**2).sum()) for array in arrays) for arrays in zip(*self._exact, strict=True)]

    def _outputs(self, batch: Batch) -> list[np.ndarray]:
        found = self.network(batch)
        return [np.array(found[name], np.float64) for name in self.network.outputs]

    def measure(self) -> float:
        """Noise power over signal power as the network rounds now: the mean over its outputs, of all batches."""
        noise = np.zeros(len(self._signal))
        for batch, exact in zip(self.batches, self._exact, strict=True):
            noise += [((a - b) ** 2).sum() for a, b in zip(self._outputs(batch), exact, strict=True)]
        ratios = [n / s if s else math.inf if n else 0.0 for n, s in zip(noise, self._signal, strict=True)]
        return float(np.mean(ratios))


def affordable(network: SimulatedNetwork, batches: Sequence[Batch], runs: int) -> Sequence[Batch]:
    """The first batches, as many as can be run `runs` times in about `SECONDS`, but `FEWEST`.

    By estimate, not by the clock: the same data give the same choices however busy the machine is.
    """
    seconds = runs * (SECONDS_PER_RUN + network.macs / MACS_PER_SECOND)
    return batches[: max(int(SECONDS / seconds), FEWEST)]


def decibels(noise: float) -> float:
    """The signal-to-quantisation-noise ratio in dB."""
    return math.inf if noise == 0 else -10.0 * math.log10(noise)

"""Weights of few bits, rounded layer after layer, each for what the rounded layers in front of it deliver.

`learn_weights` rounds every layer for what the float network delivers, so errors of the layers in front stay. Here the
float network's results y W' are what a layer is to deliver from rounded data x: the weights that come nearest are not W
but  W (1 + E[(y - x) x'] E[x x']^-1), and it is these that are rounded, for E[x x'] (`PairedMoments`). That makes good
what can be told from x, as in GPTQ's layers in order (Frantar et al. 2022, arXiv:2210.17323), whose targets, too, are
those of the float network in Li et al., *GPTAQ: efficient finetuning-free quantization for asymmetric calibration*,
2025 (arXiv:2504.02692). Only strictly in order: two layers that did not see each other's correction would both make
the same correction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import tvm
from tqdm import tqdm

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization.calibrate import Run
from tvm_int8.quantization.learned_weights import LearnedLayer, learn_weights, read_of
from tvm_int8.quantization.output_noise import Batch, OutputNoise, affordable
from tvm_int8.quantization.paired_moments import PairedMoments
from tvm_int8.quantization.simulated_network import SimulatedNetwork

KEPT_BYTES = 1 << 29
"""Of tensors of the float network."""
FEWEST_INPUTS = 32
"""Of those there are, to round in order for: large networks, which can be run less often, are rounded at once."""


def learn_weights_in_order(
    mod: tvm.IRModule,
    quantizers: Quantizers,
    network: Run,
    batches: Sequence[Batch],
    correct_bias: bool = True,
    progress: bool = True,
    names: Collection[str] | None = None,
    alone: Quantizers | None = None,
) -> Quantizers:
    """Round weights again, in the order of the network; parameters and result as for `learn_weights`.

    Takes two runs of the network, float and rounded, per layer and input; where that takes too long for
    `FEWEST_INPUTS`, or makes more noise at the outputs, it is `learn_weights`, or `alone`, its result, if given.
    """
    alone = alone or learn_weights(mod, quantizers, network, batches, correct_bias, progress, names)
    chosen = names or quantizers.weights
    bindings = Dataflow(mod).bindings
    calls = {b.var.name: b.value for b in bindings if b.var.name in chosen and PairedMoments.applies(b.value)}
    if not calls:
        return alone
    reads = dict.fromkeys(call.args[0].name for call in calls.values())
    simulated = SimulatedNetwork(mod, quantizers, list(reads))
    seen = affordable(simulated, batches, 2 * len(calls))
    if len(seen) < min(FEWEST_INPUTS, len(batches)):
        return alone
    learned = {name: weight for name, weight in alone.weights.items() if name not in calls}
    exact = _Reads(network, list(reads))
    for name, call in tqdm(calls.items(), "round weights", unit="layer", disable=None if progress else True):
        simulated.apply(replace(quantizers, weights=learned))
        moments = PairedMoments(call, len(seen))
        for number, batch in enumerate(seen):
            rounded = read_of(call, simulated(batch), quantizers)
            moments.update_both(rounded, read_of(call, exact(number, batch), quantizers, rounded=False))
        learned[name] = LearnedLayer(call, moments, correct_bias)(quantizers.weights[name])
    in_order = replace(quantizers, weights={name: learned[name] for name in quantizers.weights})
    return min(in_order, alone, key=_Noise(simulated, seen))


class _Reads:
    """What convolutions read in the float network, by batch: run once for each, as far as memory allows."""

    def __init__(self, network: Run, names: Sequence[str]):
        self.network, self.names = network, names
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._left = KEPT_BYTES

    def __call__(self, number: int, batch: Batch) -> dict[str, np.ndarray]:
        if number in self._kept:
            return self._kept[number]
        tensors = self.network(dict(batch))
        found = {name: np.array(tensors[name]) for name in self.names}
        self._left -= sum(array.nbytes for array in found.values())
        if self._left >= 0:
            self._kept[number] = found
        return found


class _Noise:
    """Of a network's outputs, by what rounds it."""

    def __init__(self, network: SimulatedNetwork, batches: Sequence[Batch]):
        self.network, self.noise = network, OutputNoise(network, batches)

    def __call__(self, quantizers: Quantizers) -> float:
        self.network.apply(quantizers)
        return self.noise.measure()

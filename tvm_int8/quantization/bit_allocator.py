"""From a quantised network to bit-widths: what to measure, what to add up, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.passes.quantizers import QuantizerChoice, Quantizers, WeightQuantizer
from tvm_int8.quantization.bit_widths import WeightBits
from tvm_int8.quantization.channel_noise import ChannelNoise, measure_channels
from tvm_int8.quantization.layer_noise import (
    NoiseByBits,
    WeightsByBits,
    measure_activations,
    measure_weights,
    points_of,
)
from tvm_int8.quantization.learned_weights import observe_moments
from tvm_int8.quantization.output_noise import OutputNoise, affordable
from tvm_int8.quantization.quantize import Quantization, few_bits
from tvm_int8.quantization.second_moments import SecondMoments
from tvm_int8.quantization.simulated_network import SimulatedNetwork
from tvm_int8.quantization.weights_in_order import learn_weights_in_order

SPARSE_WIDTHS = (2, 5)
"""Measured in large networks; noise at the others follows from the weights' own."""
FEW_BATCHES = 8
"""Fewer than this, and `SPARSE_WIDTHS` are measured on more batches instead of all widths."""
MORE_RUNS = 24
"""Of the network: those of the search that follows."""
LEARNING_SECONDS = 40.0
LEARNING_OPS_PER_SECOND = 2e10
SECONDS_PER_COLUMN = 3e-4
"""What rounding one column of a weight for data takes, whatever its rows."""
OBSERVED = 4
"""Inputs that the noise of tensors themselves is taken from."""


class BitAllocator:
    """Measures a network once; then any choice of widths can be predicted and tried.

    Parameters
    ----------
    quantized : Quantization
        With 8 bits everywhere, and histograms in its table.
    widths : sequence of int
        What layers can have.
    progress : bool
    """

    def __init__(self, quantized: Quantization, widths: Sequence[int], progress: bool = True):
        self.quantized, self.widths, self.progress = quantized, tuple(sorted(widths)), progress
        mod, config = quantized.float_mod, quantized.config
        flow = Dataflow(mod)
        plan = plan_quantization(flow, config)
        self.choice = QuantizerChoice(flow, plan, quantized.table, config)
        self.quantizers = quantized.quantizers
        self.layers = self.choice.layers
        self.points = points_of(self.choice, self.quantizers)
        self.network = quantized.network or SimulatedNetwork(mod, self.quantizers)
        count = len(self.layers) + len(self.points)
        batches = affordable(self.network, quantized.reference.batches, count * len(self.widths) + MORE_RUNS)
        self.measured_widths = self.widths
        if len(batches) < min(FEW_BATCHES, len(quantized.reference.batches)):
            distances = [[abs(own - wanted) for own in self.widths] for wanted in SPARSE_WIDTHS]
            self.measured_widths = tuple(sorted({self.widths[int(np.argmin(row))] for row in distances}))
            runs = count * len(self.measured_widths) + MORE_RUNS
            batches = affordable(self.network, quantized.reference.batches, runs)
        self.batches = batches
        self.noise = OutputNoise(self.network, batches)
        self.weights = WeightsByBits(flow, self.choice, self.quantizers, self._moments(flow), self._corrects)
        self._known: dict[tuple, float] = {}
        self._in_order: dict[tuple, Quantizers] = {}

    @property
    def _corrects(self) -> bool:
        return self.quantized.config.bias_correction != "none"

    def _moments(self, flow: Dataflow) -> dict[str, SecondMoments]:
        """What convolutions read, where rounding for it is wanted and takes no longer than `LEARNING_SECONDS`."""
        calls = {b.var.name: b.value for b in flow.bindings if b.var.name in self.quantizers.weights}
        if self.quantized.config.rounding == "nearest":
            return {}
        shapes = [(const_value(call.args[1]).shape, int(call.attrs.groups)) for call in calls.values()]
        seconds = sum(_learning_seconds(*shape) for shape in shapes)
        if seconds * len(self.measured_widths) > LEARNING_SECONDS:
            return {}
        reference = self.quantized.reference
        return observe_moments(calls, self.quantizers, reference.network, reference.batches, self.progress)

    def weight_noise(self) -> list[NoiseByBits]:
        """Of all layers, measured."""
        self.network.apply(None)
        found = measure_weights(self.weights, self.layers, self.measured_widths, self.noise, self.progress)
        return [noise.at(self.widths) for noise in found]

    def channel_noise(self) -> list[ChannelNoise]:
        """Of all layers' output channels."""
        self.network.apply(None)
        batches = self.quantized.reference.batches
        args = self.weights, self.layers, self.measured_widths, self.network, batches
        return measure_channels(*args, self.progress)

    def activation_noise(self) -> list[NoiseByBits]:
        """Of all tensors, measured."""
        self.network.apply(None)
        reference = self.quantized.reference
        tensors = [
            {name: np.array(value) for name, value in reference.network(batch).items()}
            for batch in reference.batches[:OBSERVED]
        ]
        found = measure_activations(
            self.points, self.choice, self.quantizers, self.measured_widths, self.noise, tensors, self.progress
        )
        return [noise.at(self.widths) for noise in found]

    def reached(self, weights: Sequence[WeightBits] | None, activations: Sequence[int] | None = None) -> float:
        """Noise power over signal power at the outputs with these widths, every layer's weights rounded by themselves.

        weights : of the layers, or of every output channel of them, in order; None leaves them in FP32.
        activations : of `points`, in order; None for 8 bits everywhere.
        """
        key = tuple(weights or ()), tuple(activations or ())
        if key not in self._known:
            self.network.apply(self.quantizers_of(weights, activations))
            self._known[key] = self.noise.measure()
        return self._known[key]

    def delivered(self, weights: Sequence[WeightBits], activations: Sequence[int] | None = None) -> float:
        """The same of the network that is compiled: `rounded_in_order`."""
        rounded = self.rounded_in_order(weights, activations)
        self.network.apply(rounded)
        return self.noise.measure()

    def rounded_in_order(self, weights: Sequence[WeightBits], activations: Sequence[int] | None = None) -> Quantizers:
        """What a network of these widths has in the end: see `weights_in_order`; parameters as for `reached`."""
        key = tuple(weights), tuple(activations or ())
        if key not in self._in_order:
            self._in_order[key] = self._round_in_order(weights, activations)
        return self._in_order[key]

    def _round_in_order(self, weights: Sequence[WeightBits], activations: Sequence[int] | None) -> Quantizers:
        alone, reference = self.quantizers_of(weights, activations), self.quantized.reference
        few = few_bits(alone, self.quantized.config) if self.weights.moments else []
        if not few:
            return alone
        plain = self.quantizers_of(weights, activations, self.weights.plain)
        arguments = reference.network, reference.batches, self._corrects, self.progress
        return learn_weights_in_order(self.quantized.float_mod, plain, *arguments, few, alone)

    def quantizers_of(
        self,
        weights: Sequence[WeightBits] | None,
        activations: Sequence[int] | None = None,
        rounding: Callable[[str, WeightBits], WeightQuantizer] | None = None,
    ) -> Quantizers:
        """What rounds with these widths; `rounding` makes the weights, parameters as for `reached`."""
        made = rounding or self.weights
        rounded = dict(self.quantizers.activations)
        for point, bits in zip(self.points, activations or (), strict=False):
            for var in point.variables:
                rounded[var.name] = self.choice.with_bits(var, self.quantizers.activations[var.name], bits)
        chosen = {} if weights is None else dict(zip(self.layers, weights, strict=True))
        return replace(
            self.quantizers,
            activations=rounded,
            weights={name: made(name, bits) for name, bits in chosen.items()},
        )


def _learning_seconds(shape: tuple[int, ...], groups: int) -> float:
    """What rounding a weight [O, I, KH, KW] for data takes, estimated."""
    outputs, columns = shape[0] // groups, int(np.prod(shape[1:]))
    ops = 3 * columns**3 + 6 * outputs * columns**2
    return groups * (columns * SECONDS_PER_COLUMN + ops / LEARNING_OPS_PER_SECOND)

"""How much of the noise in a network's outputs each layer is to blame for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import tvm
from tqdm import tqdm

from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, shape_of
from tvm_int8.passes.groups import Group
from tvm_int8.passes.quantization_plan import Unit, future_kernels, plan_quantization
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization.output_noise import Batch, OutputNoise, affordable, decibels
from tvm_int8.quantization.simulated_network import SimulatedNetwork

FLOAT_COST = 4.0
"""How many times longer a multiplication takes in FP32 than in INT8, on AVX-512 with VNNI."""
MORE_RUNS = 30
"""Beside two for each layer: those of a search that follows."""
MACS_PER_BYTE = 2.0
"""How many multiplications in FP32 take as long as reading or writing one byte."""


@dataclass(frozen=True)
class LayerSensitivity:
    """A convolution or dense layer.

    Parameters
    ----------
    layer, op : str
        The user's name of it, and its operator.
    alone : float
        Noise power over signal power at the outputs when nothing but this layer is quantised.
    without : float
        The same when everything but this layer is.
    int8_time, float_time : float
        What it takes, estimated, in units of one multiplication in FP32.
    """

    layer: str
    op: str
    alone: float
    without: float
    int8_time: float
    float_time: float

    @property
    def cost(self) -> float:
        """What it takes longer in FP32."""
        return self.float_time - self.int8_time

    @property
    def alone_db(self) -> float:
        """SQNR of the outputs with only this layer quantised."""
        return decibels(self.alone)

    @property
    def without_db(self) -> float:
        """SQNR of the outputs with all layers but this one quantised."""
        return decibels(self.without)


class Sensitivity:
    """Measures the noise of parts of a network.

    Parameters
    ----------
    mod : IRModule
        Canonical float module.
    config : QuantizationConfig
        What it is quantised with, some layers already excluded perhaps.
    quantizers : Quantizers
        Of that module.
    batches : sequence of batches
        Typical inputs, of which as many are used as time allows.
    network : SimulatedNetwork, optional
        Of that module, where there is one already.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        config: QuantizationConfig,
        quantizers: Quantizers,
        batches: Sequence[Batch],
        network: SimulatedNetwork | None = None,
    ):
        self.flow, self.config, self.quantizers = Dataflow(mod), config, quantizers
        self.network = network or SimulatedNetwork(mod, quantizers)
        self._groups = future_kernels(self.flow, config)
        plan = plan_quantization(self.flow, config, self._groups)
        self.units = {unit.layer: unit for unit in plan.units if unit.kind == "compute"}
        self.batches = affordable(self.network, batches, 2 * len(self.units) + MORE_RUNS)
        self._noise = OutputNoise(self.network, self.batches)

    @property
    def layers(self) -> list[str]:
        """The layers that compute in INT8."""
        return list(self.units)

    def noise(self, floating: Collection[str]) -> float:
        """Noise power over signal power at the outputs, some layers left in FP32."""
        self.network.apply(restricted(self.flow, excluding(self.config, floating), self.quantizers, self._groups))
        return self._noise.measure()

    def sqnr_db(self, floating: Collection[str] = ()) -> float:
        """SQNR of the outputs in dB, some layers left in FP32."""
        return decibels(self.noise(floating))

    def measure(self, progress: bool = True) -> list[LayerSensitivity]:
        """All layers, in the order of the network."""
        found = []
        for layer in tqdm(self.layers, "sensitivity", unit="layer", disable=None if progress else True):
            alone = self.noise([other for other in self.layers if other != layer])
            unit = self.units[layer]
            found.append(LayerSensitivity(layer, unit.op, alone, self.noise([layer]), *times(unit)))
        return found


def excluding(config: QuantizationConfig, layers: Collection[str]) -> QuantizationConfig:
    """The options with more layers left in FP32."""
    return replace(config, float_layers=(*config.float_layers, *layers))


def restricted(
    flow: Dataflow, config: QuantizationConfig, quantizers: Quantizers, groups: list[Group] | None = None
) -> Quantizers:
    """Those of a network's quantisers that are left when more layers are excluded, as they are."""
    plan = plan_quantization(flow, config, groups)
    rounded = {var.name for var in plan.quantized}
    computing = {unit.group.anchor.var.name for unit in plan.units if unit.kind == "compute"}
    return Quantizers(
        {name: q for name, q in quantizers.activations.items() if name in rounded},
        {name: q for name, q in quantizers.weights.items() if name in computing},
        {name: p for name, p in quantizers.pixels.items() if name in rounded},
        {name: tiled for name, tiled in quantizers.winograd.items() if name in computing},
    )


def times(unit: Unit) -> tuple[float, float]:
    """What a layer takes in INT8 and in FP32, estimated, in units of one multiplication in FP32."""
    call = unit.group.anchor.value
    weight, per_pixel_of = const_value(call.args[1]), call.args[0] if unit.op == "nn.conv2d_transpose" else call
    n, _, height, width = shape_of(per_pixel_of)  # each pixel of which meets every weight
    macs = n * height * width * weight.size
    moved = MACS_PER_BYTE * (sum(_elements(var) for var in unit.inputs) + _elements(unit.output) + weight.size)
    return macs / FLOAT_COST + moved, macs + 4 * moved


def _elements(var) -> int:
    count = 1
    for extent in shape_of(var):
        count *= extent
    return count

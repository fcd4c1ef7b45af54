"""In which ways the 3x3 convolutions of a quantised network may be computed by tiles.

Larger tiles need fewer products, and lose more when these are of 8 bits.  A position in 16 bits loses next to nothing,
at a half or a quarter of the speed: of each tile, as many positions are narrow as a limit of the loss allows.  With all
positions in 16 bits a layer is more accurate than the direct convolution, because its weights are not rounded to 8.
What is fastest depends on the CPU (`schedules.convolution_time`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from tvm_int8 import winograd
from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name
from tvm_int8.passes.quantizers import ActivationQuantizer, Quantizers, WeightQuantizer
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.transformed_statistics import TILES, Tile, TransformedStatistics
from tvm_int8.quantization.winograd_noise import Ranges, WinogradNoise, data_ranges, predict_noise
from tvm_int8.quantization.winograd_quantizer import WinogradQuantizer, WinogradWay, quantize_transformed

LARGEST = TILES[0]
"""The tile that needs fewest products: what all positions in 16 bits are worth most for."""
FEWEST_CHANNELS = 16
"""Of data and results: fewer leave transforms more to do than the products they save."""


def can_be_tiled(call: relax.Call) -> bool:
    """Whether a convolution of the float network is one that Winograd's algorithm pays for."""
    if op_name(call) != "nn.conv2d":
        return False
    attrs, weight = call.attrs, const_value(call.args[1])
    ones = all(int(v) == 1 for v in (*attrs.strides, *attrs.dilation, attrs.groups))
    return ones and weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= FEWEST_CHANNELS


def tiled_reads(calls: Iterable[relax.Call]) -> dict[str, list[tuple[int, int, int, int]]]:
    """What such convolutions read: tensor -> their paddings."""
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for call in filter(can_be_tiled, calls):
        top, left, bottom, right = (int(pad) for pad in call.attrs.padding)
        found.setdefault(call.args[0].name, []).append((top, left, bottom, right))
    return found


def choose_winograd(
    flow: Dataflow, quantizers: Quantizers, table: CalibrationTable, config: QuantizationConfig
) -> dict[str, tuple[WinogradWay, ...]]:
    """Make the quantisers of all convolutions that may be computed by tiles.

    Parameters
    ----------
    flow : Dataflow
        Of the canonical float module.
    quantizers : Quantizers
        Of that module.
    table : CalibrationTable
        Without statistics of transformed data, all positions have 16 bits.
    config : QuantizationConfig

    Returns
    -------
    dict
        Convolution -> one way with every position in 16 bits, and of each tile the one with as few of these as
        `winograd_max_loss_db` allows, if that is not all; with ``winograd="always"``, those with none. Empty with
        ``winograd="off"``.
    """
    if config.winograd == "off":
        return {}
    found = {}
    for name, layer in tiled_layers(flow, quantizers).items():
        seen = table.transformed.get(layer.data) if config.weight_bits == 8 else None  # see `_ways`
        found[name] = _ways(layer, seen, config)
    return found


def _ways(layer: TiledLayer, seen: TransformedStatistics | None, config: QuantizationConfig) -> tuple[WinogradWay, ...]:
    """Without statistics nothing can be narrow; with weights of 7 bits, kernels may add two products in 16 bits."""
    every = tuple(range(winograd.positions(LARGEST)))
    if seen is None:
        return (WinogradWay(LARGEST, every, None, lambda: layer.quantizer(LARGEST, every, None)),)
    seen, found = seen.divided(layer.divisor), []
    for tile in TILES:
        noise = layer.noise(tile, seen)
        widths = [every] if tile == LARGEST else []
        fewest = noise.fewest_wide(config.winograd_max_loss_db)
        widths += [fewest] if len(fewest) < winograd.positions(tile) else []
        widths += [()] if config.winograd == "always" else []
        found += [layer.way(tile, wide, seen, noise.loss_db(wide)) for wide in dict.fromkeys(widths)]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class TiledLayer:
    """A convolution of integers that may be computed by tiles.

    Parameters
    ----------
    data : str
        The tensor it reads.
    weight : float64 [O, C, 3, 3]
        Real, in units of the direct convolution's int8 weights.
    error : float64 [O, C, 3, 3]
        What these are off by.
    scale : float64 [O]
        Their scale.
    divisor : float64 [C]
        real data = divisor * (integers - zero point)
    ends : (int, int)
        Lowest and highest integer of the data, less their zero point.
    correction : float64 [O] or None
        Undoes what the direct convolution's bias says about its weights' mean error, in accumulators.
    """

    data: str
    weight: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    divisor: np.ndarray
    ends: tuple[int, int]
    correction: np.ndarray | None

    def quantizer(
        self, tile: Tile, wide: tuple[int, ...], seen: TransformedStatistics | None, rule: Ranges = data_ranges
    ) -> WinogradQuantizer:
        """Quantise it; without statistics, in units of the data's integers, all positions must be wide."""
        ranges, means = (None, None) if seen is None else (rule(seen.tiles[tile]), seen.mean)
        found = quantize_transformed(self.weight, tile, wide, ranges, self.ends, means)
        corrections = [c for c in (found.correction, self.correction) if c is not None]
        return replace(found, correction=np.sum(corrections, axis=0) if corrections else None)

    def noise(self, tile: Tile, seen: TransformedStatistics) -> WinogradNoise:
        """Predict it, with statistics as for `quantizer`."""
        return predict_noise(self.weight, self.error, self.scale, seen, tile, data_ranges(seen.tiles[tile]))

    def way(self, tile: Tile, wide: tuple[int, ...], seen: TransformedStatistics, loss_db: float) -> WinogradWay:
        """Say how to quantise it, and what that costs."""
        return WinogradWay(tile, wide, loss_db, lambda: self.quantizer(tile, wide, seen))


def tiled_layers(flow: Dataflow, quantizers: Quantizers) -> dict[str, TiledLayer]:
    """Return the convolutions of a quantised network that may be computed by tiles, by name."""
    found = {}
    for binding in flow.bindings:
        weight, call = quantizers.weights.get(binding.var.name), binding.value
        if weight is None or weight.bits < 7 or not can_be_tiled(call):
            continue
        data = quantizers.activations.get(call.args[0].name)
        if data is not None and data.bits == 8 and np.ptp(data.zero_point) == 0:
            found[binding.var.name] = _layer(call.args[0].name, weight, data, quantizers.divisor(call))
    return found


def _layer(name: str, weight: WeightQuantizer, data: ActivationQuantizer, divisor: np.ndarray | None) -> TiledLayer:
    outputs, channels = weight.exact.shape[:2]
    scale = np.broadcast_to(weight.scale.reshape(-1), outputs).astype(np.float64)
    exact = weight.exact.astype(np.float64) / scale[:, None, None, None]
    step = float(data.scale) if divisor is None else data.step
    correction = None if weight.correction is None else -weight.correction.reshape(-1) / (scale * step)
    low, high = (int(limit - np.ravel(data.zero_point)[0]) for limit in data.limits)
    factor = step * (np.ones(channels) if divisor is None else divisor)
    return TiledLayer(name, exact, weight.values - exact, scale, factor, (low, high), correction)

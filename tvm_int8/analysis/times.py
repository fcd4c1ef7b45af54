"""What layers take in INT8 and in FP32: measured where this machine can, else estimated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm_int8.quantization.output_noise import Batch
from tvm_int8.quantization.sensitivity import LayerSensitivity
from tvm_int8.runtime import CompiledModule
from tvm_int8.runtime.measure import Profile

RESOLUTION_US = 0.5
"""Differences below are noise of the clock around kernels."""


@dataclass(frozen=True)
class Times:
    """Of all layers.

    Parameters
    ----------
    unit : str
        "us", or "%": of the estimated time of all layers in INT8.
    layers : tuple of LayerSensitivity
        With these times in them.
    int8, floating : float
        Of the whole network.
    conditions : str
        How they came about.
    resolution : float
        The smallest difference that means something.
    """

    unit: str
    layers: tuple[LayerSensitivity, ...]
    int8: float
    floating: float
    conditions: str
    resolution: float


def measured_times(
    layers: Sequence[LayerSensitivity], int8: CompiledModule, floating: CompiledModule, batch: Batch
) -> Times:
    """Run both modules on one input with a clock around every kernel."""
    profiles = int8.profile(batch), floating.profile(batch)
    in_int8, in_float = (_by_layer(profile) for profile in profiles)
    timed = [replace(layer, int8_time=in_int8[layer.layer], float_time=in_float[layer.layer]) for layer in layers]
    threads = profiles[0].num_threads
    conditions = f"sum of kernels, measured for {int8.metadata.mcpu} on {threads} thread{'s' if threads > 1 else ''}"
    total, floating_total = (profile.kernels_us for profile in profiles)
    return Times("us", tuple(timed), total, floating_total, conditions, RESOLUTION_US)


def estimated_times(layers: Sequence[LayerSensitivity]) -> Times:
    """Take the estimates as shares of all layers' time in INT8."""
    unit = sum(layer.int8_time for layer in layers) / 100
    scaled = [replace(layer, int8_time=layer.int8_time / unit, float_time=layer.float_time / unit) for layer in layers]
    floating = sum(layer.float_time for layer in scaled)
    return Times("%", tuple(scaled), 100.0, floating, "convolutions and dense layers, estimated from their sizes", 0.0)


def _by_layer(profile: Profile) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for row in profile.rows:
        found[row.layer] += row.us
    return found

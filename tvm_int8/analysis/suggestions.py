"""Which layers to leave in FP32, the most worthwhile first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from tvm_int8.analysis.results import Suggestion
from tvm_int8.analysis.times import Times
from tvm_int8.quantization.mixed_precision import by_worth
from tvm_int8.quantization.sensitivity import Sensitivity

MOST_TRIED = 16
"""Layers that are tried in FP32, at most."""
LEAST_GAIN_DB = 0.02
"""Below, a layer is passed over; one of a hundred equally noisy layers gains twice that."""


def suggest(sensitivity: Sensitivity, times: Times, float_layers: Sequence[str], progress: bool) -> list[Suggestion]:
    """Leave layer after layer in FP32, by noise alone over what that costs, and measure the noise that is left.

    Layers that make the outputs hardly better are passed over.

    Parameters
    ----------
    sensitivity : Sensitivity
    times : Times
    float_layers : sequence of str
        What the option holds already.
    progress : bool
    """
    found: list[Suggestion] = []
    names, reached, spent = [*float_layers], sensitivity.sqnr_db(), 0.0
    # Ranked as if none cost less than what can be measured; some are even faster in FP32.
    slower = [
        replace(each, float_time=max(each.float_time, each.int8_time + times.resolution)) for each in times.layers
    ]
    ranked = by_worth(slower)[:MOST_TRIED]
    for layer in tqdm(ranked, "suggestions", unit="layer", disable=None if progress else True):
        sqnr_db = sensitivity.sqnr_db([*(suggestion.layer for suggestion in found), layer.layer])
        gain = sqnr_db - reached
        if not gain >= LEAST_GAIN_DB:
            continue
        names.append(layer.layer)
        spent += layer.cost
        reached = sqnr_db
        shares = layer.cost / times.int8, spent / times.int8
        found.append(Suggestion(layer.layer, gain, reached, layer.cost, *shares, tuple(names)))
    return found

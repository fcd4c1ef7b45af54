"""Which layers go back to FP32 so that the outputs' SQNR is what the user wants, at the least loss of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm_int8.quantization.output_noise import decibels
from tvm_int8.quantization.sensitivity import LayerSensitivity, Sensitivity

MOST_RETURNS = 16
"""How many layers, the most expensive ones, are tried in INT8 again after the first choice."""


def by_worth(layers: Sequence[LayerSensitivity]) -> list[LayerSensitivity]:
    """Layers by how much noise they take with them into FP32 per loss of time, the most worthwhile first."""
    return sorted(layers, key=lambda layer: -layer.alone / layer.cost)


def fewest(good: Callable[[int], bool], most: int) -> int:
    """The smallest count in 0..most that is good, by bisection; `most` where none is, without asking."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if good(middle):
            high = middle
        else:
            low = middle + 1
    return low


def layers_for_sqnr(sensitivity: Sensitivity, wanted_db: float, progress: bool = True) -> tuple[list[str], float]:
    """Choose the layers to leave in FP32.

    Noise adds up, so those are taken first that bring most noise for the time they cost; then the most expensive of
    them are tried in INT8 again, because the last ones taken may have made them unnecessary.

    Parameters
    ----------
    sensitivity : Sensitivity
    wanted_db : float
        SQNR of the outputs.
    progress : bool

    Returns
    -------
    layers : list of str
    sqnr_db : float
        What they were measured to reach.
    """
    noise, allowed = sensitivity.noise, 10 ** (-wanted_db / 10)
    present = noise([])
    if present <= allowed:
        return [], decibels(present)
    ranked = by_worth(sensitivity.measure(progress))
    count = fewest(lambda k: noise([layer.layer for layer in ranked[:k]]) <= allowed, len(ranked))
    chosen = ranked[:count]
    for layer in sorted(chosen, key=lambda layer: -layer.cost)[:MOST_RETURNS]:
        others = [other for other in chosen if other is not layer]
        if noise([other.layer for other in others]) <= allowed:
            chosen = others
    names = [layer.layer for layer in chosen]
    return names, decibels(noise(names))


def layers_for_slowdown(sensitivity: Sensitivity, share: float, progress: bool = True) -> tuple[list[str], float]:
    """Choose the layers to leave in FP32 for a given loss of time.

    Parameters
    ----------
    sensitivity : Sensitivity
    share : float
        How much longer the convolutions may take, by estimate: 0.05 for 5 %.
    progress : bool

    Returns
    -------
    layers : list of str
        Those that bring most noise for the time they cost, as many as fit.
    sqnr_db : float
        What they were measured to reach.
    """
    measured = sensitivity.measure(progress)
    left = share * sum(layer.int8_time for layer in measured)
    names: list[str] = []
    least = sensitivity.noise([])
    for layer in by_worth(measured):
        if layer.cost <= left:
            reached = sensitivity.noise([*names, layer.layer])
            if reached < least:
                names, least, left = [*names, layer.layer], reached, left - layer.cost
    return names, decibels(least)

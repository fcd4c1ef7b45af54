"""Accuracy against size for several ways to allocate bits, and against SQNR: a row per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_STYLES = {
    "equal": ("equal bits", "#666666", "s"),
    "closed_form (sqnr)": ("closed form, the paper's weighting", "#E69F00", "v"),
    "closed_form": ("closed form", "#009E73", "^"),
    "optimal": ("optimum", "#0072B2", "o"),
    "optimal, per channel": ("optimum, bits per channel", "#CC79A7", "D"),
}
"""Way to its name, colour (from Okabe and Ito's palette) and mark."""


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's."""
    ranks = [_ranks(np.array(column, np.float64)) for column in zip(*pairs, strict=True)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in ascending order; the mean place among equals."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def write(path: Path, networks: Sequence[Mapping[str, Any]]) -> None:
    """Draw what `benchmarks.bit_widths --json` wrote for some networks, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9 * len(networks) + 0.5), dpi=130, layout="constrained", facecolor="white")
    panels = figure.subplots(len(networks), 2, squeeze=False)
    for (left, right), network in zip(panels, networks, strict=True):
        _sizes(left, network)
        _scatter(right, network)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(path)


def _sizes(axes: Any, network: Mapping[str, Any]) -> None:
    for way, (name, colour, mark) in _STYLES.items():
        points = sorted((p["size_bytes"] / 1024, p["accuracy"]) for p in network["points"] if p["way"] == way)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4, linewidth=1, label=name)
    axes.set_ylabel(f"{network['network']}\naccuracy", fontsize=8)
    axes.set_xlabel("KiB of weights", fontsize=8)
    _finish(axes, network)


def _scatter(axes: Any, network: Mapping[str, Any]) -> None:
    for way, (_, colour, mark) in _STYLES.items():
        points = [(p["measured_db"], p["accuracy"]) for p in network["points"] if p["way"] == way]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=colour, marker=mark)
    every = [(p["measured_db"], p["accuracy"]) for p in network["points"]]
    axes.set_title(f"rank correlation {rank_correlation(every):.2f}, {len(every)} choices", fontsize=8)
    axes.set_xlabel("SQNR of the outputs, dB, calibration inputs", fontsize=8)
    _finish(axes, network)


def _finish(axes: Any, network: Mapping[str, Any]) -> None:
    axes.axhline(network["fp32"], color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    least = min(p["accuracy"] for p in network["points"])
    axes.set_ylim(max(least, network["fp32"] - 0.2) - 0.01, network["fp32"] + 0.02)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)

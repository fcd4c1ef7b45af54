"""Accuracy as a picture: a row per network, a mark per quantiser; SQNR on the left, what is lost on the right."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy_table import TITLES, Comparison
from benchmarks.chart import NoChartError

_MARKS = {
    "best": ("#004C7A", "D"),
    "default": ("#0072B2", "o"),
    "fast": ("#7FB8D8", "s"),
    "nncf": ("#009E73", "^"),
    "ort": ("#E69F00", "v"),
    "ort_entropy": ("#F2CF80", "<"),
    "ort_percentile": ("#F2CF80", ">"),
}
"""Row to colour, a hue per project from Okabe and Ito's palette, and shape of its mark."""

_PANELS = {
    "sqnr_db": "SQNR of the outputs in dB (right is better)",
    "points_lost": "points of the metric lost (left is better)",
}
_TEXT, _MUTED = "#222222", "#666666"
_ROW_INCHES = 0.62


def draw(comparisons: Sequence[Comparison]) -> bytes:
    """Draw networks, the first on top; the right panel only where some network has a metric.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    NoChartError
        matplotlib is not installed, or nothing was quantised.
    """
    names = [name for name in _MARKS if any(_points([c], name, "sqnr_db") for c in comparisons)]
    if not names:
        raise NoChartError("no network was quantised")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoChartError("matplotlib is not installed (pip install matplotlib)") from None
    fields = [field for field in _PANELS if any(_points(comparisons, name, field) for name in names)]
    height = 1.25 + _ROW_INCHES * len(comparisons)
    figure = Figure(figsize=(2.4 + 4.2 * len(fields), height), dpi=150, facecolor="white")
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(panels, fields, strict=True):
        _draw_panel(axes, comparisons, names, field)
    panels[0].set_yticks(range(len(comparisons)), [f"{c.network}\n{_metric(c)}" for c in comparisons])
    panels[0].set_ylim(len(comparisons) - 0.5, -0.5)
    figure.subplots_adjust(left=1.95 / figure.get_figwidth(), right=0.98, wspace=0.06)
    figure.subplots_adjust(top=1 - 0.45 / height, bottom=0.6 / height)
    handles, labels = panels[0].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 8.5, "labelcolor": _TEXT, "handletextpad": 0.3, "columnspacing": 1.4}
    figure.legend(handles, labels, loc="upper center", ncols=len(handles), **style)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _points(comparisons: Sequence[Comparison], name: str, field: str) -> list[tuple[int, float]]:
    """Place of the network and value, wherever there is one."""
    found = ((i, row) for i, comparison in enumerate(comparisons) for row in comparison.rows if row.name == name)
    return [(i, getattr(row, field)) for i, row in found if getattr(row, field) is not None]


def _metric(comparison: Comparison) -> str:
    score = comparison["fp32"].score
    return "" if score is None else f"{comparison.metric} {score:.1%} in FP32"


def _draw_panel(axes: Any, comparisons: Sequence[Comparison], names: Sequence[str], field: str) -> None:
    spread = 0.6 / max(len(names) - 1, 1)  # marks of equal value stand above each other
    for order, name in enumerate(names):
        colour, mark = _MARKS[name]
        points = _points(comparisons, name, field)
        at = [i + spread * (order - (len(names) - 1) / 2) for i, _ in points]
        axes.scatter([value for _, value in points], at, s=34, color=colour, marker=mark, label=TITLES[name], zorder=3)
    for border in range(1, len(comparisons)):
        axes.axhline(border - 0.5, color="#e6e6e6", linewidth=0.8)
    if field == "points_lost":
        axes.axvline(0, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_xlabel(_PANELS[field], fontsize=9, color=_TEXT)
    axes.xaxis.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelsize=8.5, labelcolor=_TEXT)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(side == "left")
    axes.spines["left"].set_color(_MUTED)

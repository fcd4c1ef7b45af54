"""The comparison as a picture: bars of latency, one group per network, one panel per number of threads.

Latency is relative to the better peer's INT8, so that networks of all sizes share an axis; labels give milliseconds.
"""

from __future__ import annotations

import io
from typing import Any

from benchmarks.peers import INT8_PEERS

_STYLES = {
    "tvm_int8": ("#0072B2", 0),
    "ort_int8": ("#E69F00", 0),
    "openvino_int8": ("#009E73", 0),
    "tvm_fp32": ("#0072B2", 0.62),
    "ort_fp32": ("#E69F00", 0.62),
    "openvino_fp32": ("#009E73", 0.62),
}
"""Runner to its colour and how much white is mixed in, in the order of a group's bars: a hue per runtime, from Okabe
and Ito's palette, which colour-blind readers tell apart, and a paler one for FP32."""

_LONGEST = 4.0
"""Where the axis ends at the latest; longer bars are cut and say so."""
_BAR_HEIGHT = 0.2
_GAP = 0.9
"""Between groups, in bars."""
_TEXT, _MUTED = "#222222", "#666666"


class NoChartError(Exception):
    """There is nothing to draw, or nothing to draw with; the message says which."""


def draw(results: list[dict], conditions: str) -> bytes:
    """Draw the chart.

    Parameters
    ----------
    results : list of dict
        As `benchmarks.compare.compare` returns them. Networks without any peer's INT8 are left out.
    conditions : str
        Machine, date and versions, for the title.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    NoChartError
        matplotlib is not installed, or no network was timed with a peer's INT8.
    """
    results = [result for result in results if _baseline(result)]
    if not results:
        raise NoChartError("no network was timed with the INT8 of ONNX Runtime or OpenVINO")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoChartError("matplotlib is not installed (pip install matplotlib)") from None
    counts = sorted({result["threads"] for result in results})
    networks = list(dict.fromkeys(result["network"] for result in results))
    keys = [key for key in _STYLES if any(key in result["runners"] for result in results)]
    positions = {name: i * (len(keys) + _GAP) for i, name in enumerate(networks)}
    height = max(len(networks) * (len(keys) + _GAP) * _BAR_HEIGHT, 1.2) + 1.7
    figure = Figure(figsize=(2.0 + 5.5 * len(counts), height), dpi=150, facecolor="white")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, threads in zip(panels, counts, strict=True):
        chosen = [result for result in results if result["threads"] == threads]
        _draw_panel(axes, chosen, keys, positions)
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=10, color=_TEXT, loc="left")
    _name_groups(panels[0], positions, len(keys))
    _head(figure, panels[0], conditions, height)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _baseline(result: dict) -> float | None:
    """Return the better peer's INT8 median in ms, None where no peer has one."""
    return min((result["runners"][key]["median_ms"] for key in INT8_PEERS if key in result["runners"]), default=None)


def _draw_panel(axes: Any, results: list[dict], keys: list[str], positions: dict[str, float]) -> None:
    longest = 1.0
    for i, key in enumerate(keys):
        rows = [
            (positions[result["network"]] + i, result["runners"][key], _baseline(result))
            for result in results
            if key in result["runners"]
        ]
        if not rows:
            continue
        relative = [row["median_ms"] / baseline for _, row, baseline in rows]
        shown = [min(value, _LONGEST) for value in relative]
        longest = max(longest, *shown)
        axes.barh([y for y, _, _ in rows], shown, height=0.86, color=_colour(key), label=rows[0][1]["name"])
        for (y, row, _), value in zip(rows, relative, strict=True):
            _label(axes, y, row["median_ms"], value, bold=key == "tvm_int8")
    axes.axvline(1.0, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_xlim(0, longest * 1.2)
    axes.set_xlabel("latency relative to the better peer's INT8 (shorter is faster)", fontsize=9, color=_TEXT)
    axes.xaxis.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelsize=9, labelcolor=_TEXT)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(side == "left")
    axes.spines["left"].set_color(_MUTED)


def _label(axes: Any, y: float, median_ms: float, relative: float, bold: bool) -> None:
    """Write milliseconds behind a bar; behind one that was cut also how long it is."""
    text = f"{median_ms:.3g} ms" if median_ms < 100 else f"{median_ms:.0f} ms"
    if relative > _LONGEST:
        text = f"» {text} ({relative:.1f}x)"
    at = (min(relative, _LONGEST), y)
    weight = "bold" if bold else "normal"
    axes.annotate(
        text, at, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5, weight=weight, color=_TEXT
    )


def _name_groups(axes: Any, positions: dict[str, float], bars: int) -> None:
    axes.set_yticks([y + (bars - 1) / 2 for y in positions.values()], list(positions))
    axes.set_ylim(max(positions.values()) + bars - 1 + 0.8, -0.8)  # the first network on top


def _head(figure: Any, axes: Any, conditions: str, height: float) -> None:
    """Put title, conditions and legend above the panels, at fixed distances whatever the number of networks."""
    figure.subplots_adjust(left=1.45 / figure.get_figwidth(), right=0.985, wspace=0.06)
    figure.subplots_adjust(top=1 - 1.15 / height, bottom=0.5 / height)
    x = 0.15 / figure.get_figwidth()
    title = "Batch 1 latency: tvm_int8, ONNX Runtime and OpenVINO"
    figure.text(x, 1 - 0.28 / height, title, fontsize=12, weight="bold", color=_TEXT)
    figure.text(x, 1 - 0.5 / height, conditions, fontsize=8, color=_MUTED)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(x, 1 - 0.56 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=_TEXT,
        borderaxespad=0,
        borderpad=0.2,
        handlelength=1.1,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def _colour(key: str) -> tuple[float, ...]:
    colour, white = _STYLES[key]
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(channel + (1 - channel) * white for channel in channels)

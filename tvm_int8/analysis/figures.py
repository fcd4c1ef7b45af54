"""The pictures of an analysis, drawn by matplotlib as SVG that fits white and dark pages alike."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from tvm_int8.analysis.analysis import Analysis, percent
from tvm_int8.analysis.results import Distribution, LayerAnalysis
from tvm_int8.errors import ConfigError

MOST_LAYERS = 24
"""Bars of a ranking, and layers whose distributions are shown."""
_TEXT = "#010203"  # becomes the page's own colour of text
_BLUE, _ORANGE, _GREEN = "#4a90d9", "#e8833a", "#3aa675"
_MOST_NAMES = 70  # on an axis
_MARKED_DROPS = 3


def require_matplotlib() -> None:
    """Refuse to draw where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        found, action = "matplotlib is not installed", "run: pip install 'tvm-int8[report]'"
        raise ConfigError("HTML report", found, "it, for the pictures", action) from None


def waterfall(analysis: Analysis) -> str:
    """SQNR of what each layer delivers, in the order of the network."""
    known = [(layer.layer, layer.sqnr_db) for layer in analysis.layers if layer.sqnr_db is not None]
    names, levels = [name for name, _ in known], [level for _, level in known]
    drops = sorted(range(1, len(levels)), key=lambda i: levels[i] - levels[i - 1])[:_MARKED_DROPS]
    drops = [i for i in drops if levels[i] < levels[i - 1]]

    def draw(figure: Any) -> None:
        axes = _axes(figure, "y")
        axes.plot(levels, color=_BLUE, linewidth=1.6, marker="o", markersize=4, label="what the layer delivers")
        axes.plot(
            drops,
            [levels[i] for i in drops],
            "o",
            color=_ORANGE,
            markersize=8,
            label="largest drops from the layer before",
        )
        axes.axhline(analysis.sqnr_db, color=_GREEN, linewidth=1.2, linestyle="--", label="the network's outputs")
        axes.set_ylabel("SQNR in dB")
        axes.margins(x=0.01)
        if len(names) <= _MOST_NAMES:
            axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=8)
        else:
            axes.set_xlabel("layer, in the order of the network")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=3, frameon=False, labelcolor=_TEXT)

    return _svg("waterfall", (11, 4.6), draw)


def ranking(layers: Sequence[LayerAnalysis]) -> str:
    """Share of the noise in the outputs, layer by layer, the noisiest first."""
    return _bars(
        "ranking",
        [(layer.layer, 100 * layer.share, f"{layer.share:.1%}  ({layer.alone_db:.1f} dB alone)") for layer in layers],
        "share of the noise in the outputs, in %",
        _BLUE,
    )


def saturation(layers: Sequence[LayerAnalysis]) -> str:
    """Share of what layers read that is cut off."""
    return _bars(
        "saturation",
        [(layer.layer, 100 * layer.activation.saturation, percent(layer.activation.saturation)) for layer in layers],
        "values outside of the range, in %",
        _ORANGE,
    )


def trade(analysis: Analysis) -> str:
    """SQNR against time as layer after layer is left in FP32."""
    costs = [0.0, *(100 * suggestion.total_share for suggestion in analysis.suggestions)]
    levels = [analysis.sqnr_db, *(suggestion.sqnr_db for suggestion in analysis.suggestions)]

    def draw(figure: Any) -> None:
        axes = _axes(figure, "both")
        axes.plot(costs, levels, color=_BLUE, linewidth=1.6, marker="o", markersize=5)
        for count, (cost, level) in enumerate(zip(costs, levels, strict=True)):
            axes.annotate(
                str(count), (cost, level), (0, 7), textcoords="offset points", ha="center", fontsize=9, color=_TEXT
            )
        axes.set_xlabel("what the layers in FP32 take longer, in % of the network in INT8; numbers count them")
        axes.set_ylabel("SQNR of the outputs in dB")
        axes.margins(0.06, 0.14)

    return _svg("trade", (11, 3.6), draw)


def distributions(layer: LayerAnalysis, index: int) -> str:
    """What a layer reads, with its range, beside its integer weights."""

    def draw(figure: Any) -> None:
        figure.set_layout_engine("none")  # there are many of these pictures, and all have the same places
        left, right = figure.subplots(1, 2, gridspec_kw=dict(left=0.02, right=0.98, bottom=0.3, top=0.98, wspace=0.08))
        activation = layer.activation
        for axes, spread, colour in ((left, activation.values, _BLUE), (right, layer.weight.levels, _GREEN)):
            _plain(axes, "")
            _histogram(axes, spread, colour)
        left.axvspan(activation.low, activation.high, color=_ORANGE, alpha=0.14, linewidth=0)
        for end in (activation.low, activation.high):
            left.axvline(end, color=_ORANGE, linewidth=1.3)
        left.set_xlabel("value read; orange: the range", fontsize=9)
        right.set_xlabel("weight as int8", fontsize=9)
        right.set_xticks([-127, -64, 0, 64, 127])

    return _svg(f"layer{index}", (5.4, 1.75), draw)


def _histogram(axes: Any, spread: Distribution, colour: str) -> None:
    """Logarithms of counts: what is cut off is rare."""
    width = (spread.high - spread.low) / len(spread.counts)
    edges = [spread.low + i * width for i in range(len(spread.counts) + 1)]
    axes.stairs([math.log10(2 * count) if count else 0.0 for count in spread.counts], edges, fill=True, color=colour)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0)


def _bars(name: str, rows: Sequence[tuple[str, float, str]], label: str, colour: str) -> str:
    def draw(figure: Any) -> None:
        axes = _axes(figure, "x")
        values = [value for _, value, _ in rows]
        axes.barh(range(len(rows)), values, height=0.72, color=colour)
        axes.set_yticks(range(len(rows)), [_short(layer) for layer, _, _ in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.25 * max(values, default=1.0))
        axes.set_xlabel(label)
        for row, (_, value, text) in enumerate(rows):
            axes.annotate(text, (value, row), (5, 0), textcoords="offset points", va="center", fontsize=9, color=_TEXT)

    return _svg(name, (11, 0.9 + 0.25 * len(rows)), draw)


def _axes(figure: Any, grid: str) -> Any:
    axes = figure.subplots()
    _plain(axes, grid)
    return axes


def _plain(axes: Any, grid: str) -> None:
    axes.patch.set_visible(False)
    axes.tick_params(colors=_TEXT, length=3)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_TEXT)
    if grid:
        axes.grid(axis=grid, color=_TEXT, alpha=0.13, linewidth=0.8)
        axes.set_axisbelow(True)


def _svg(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """One picture as an element of a page that holds several of them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Names of layers are text, whatever signs are in them, and neither date nor addresses are written.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.family": "sans-serif"}
    with rc_context(options):
        figure = Figure(size, layout="constrained", facecolor="none")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(width|height)="[\d.]+pt" |font-family: [^;]*; ', "", text)  # as wide, and lettered, as the page
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)  # so that pictures do not share them
    return text.replace(_TEXT, "currentColor")


def _short(name: str, width: int = 34) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"

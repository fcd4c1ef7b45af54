"""An analysis as one HTML page: nothing is loaded from elsewhere, and it is readable on white and on dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape

from tvm_int8._version import __version__
from tvm_int8.analysis import figures
from tvm_int8.analysis.analysis import HEADER, Analysis, between, cells, db, percent
from tvm_int8.analysis.results import LayerAnalysis
from tvm_int8.atomic_file import write_atomically
from tvm_int8.errors import ConfigError

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.25rem; margin: 2.4rem 0 .2rem }
p { margin: .3rem 0 .8rem; max-width: 52rem } figure { margin: 0 } svg { width: 100%; height: auto; display: block }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: Canvas } .text { text-align: left } tr:hover td { background: var(--soft) }
code { background: var(--soft); padding: .1rem .35rem; border-radius: .25rem; white-space: normal; user-select: all }
.layers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: .9rem }
.layers figure { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
figcaption b { display: block; overflow-wrap: anywhere } figcaption { font-size: .85rem }
footer { margin: 3rem 0 1rem; font-size: .8rem; opacity: .7 }
"""
_TEXT_COLUMNS = {"layer", "operator", "method"}


def write_page(analysis: Analysis, path: str) -> None:
    """Draw and write; `path` holds the old content or the new, never a part."""
    check_page(path)
    content = page(analysis)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def check_page(path: str) -> None:
    """Refuse what `write_page` could not do, before the minutes that an analysis takes."""
    figures.require_matplotlib()
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise _unwritable(path, "it is a directory")
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        raise _unwritable(path, "no directory, or a protected one")


def _unwritable(path: str, reason: str) -> ConfigError:
    return ConfigError(f"report {path}", f"cannot be written ({reason})", "", "choose a path in a writable directory")


def page(analysis: Analysis) -> str:
    """The whole page."""
    noisiest = sorted(analysis.layers, key=lambda layer: -layer.share)[: figures.MOST_LAYERS]
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Quantisation error</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>',
        "<h1>Where the quantisation error comes from</h1>",
        *(f"<p>{escape(line)}</p>" for line in analysis.summary),
        *_suggestions(analysis),
        *_pictures(analysis, noisiest),
        *_distributions(noisiest, len(analysis.layers)),
        "<h2>All layers</h2>",
        *_table(analysis),
        f"<footer>tvm_int8 {escape(__version__)}</footer>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _suggestions(analysis: Analysis) -> Iterator[str]:
    yield "<h2>What to leave in FP32</h2>"
    if not analysis.suggestions:
        yield "<p>No layer in FP32 would lower the noise.</p>"
        return
    yield (
        "<p>Layers by the noise they bring for the time that FP32 costs, each on top of those above. Paste "
        "the last column into the options of quantisation for all layers down to its row.</p>"
    )
    yield '<div class="wide"><table><tr><th></th><th class="text">layer</th><th>gains</th><th>then</th>'
    yield '<th>costs</th><th>in all</th><th class="text">option</th></tr>'
    for count, each in enumerate(analysis.suggestions, 1):
        cost = f"{each.cost:.1f} us, {each.cost_share:.1%}" if analysis.time_unit == "us" else f"{each.cost_share:.1%}"
        yield (
            f'<tr><td>{count}</td><td class="text">{escape(each.layer)}</td><td>{each.gain_db:.2f} dB</td>'
            f"<td>{db(each.sqnr_db)} dB</td><td>{cost}</td><td>{each.total_share:.1%}</td>"
            f'<td class="text"><code>{escape(analysis.paste(each))}</code></td></tr>'
        )
    yield "</table></div>"
    yield _figure(figures.trade(analysis), "SQNR of the outputs against time, by the number of layers in FP32")


def _pictures(analysis: Analysis, noisiest: list[LayerAnalysis]) -> Iterator[str]:
    yield "<h2>Noise through the network</h2>"
    yield (
        "<p>Signal-to-quantisation-noise ratio of what each layer delivers, on one input. Noise adds up through "
        "a network: look for drops, not at single figures.</p>"
    )
    yield _figure(figures.waterfall(analysis), "SQNR of what each layer delivers")
    total = len(analysis.layers)
    yield "<h2>Which layers the noise comes from</h2>"
    yield (
        f"<p>Noise in the network's outputs when only one layer is quantised, relative to the sum over all "
        f"layers{_of(len(noisiest), total, 'noisiest')}.</p>"
    )
    yield _figure(figures.ranking(noisiest), "Share of the noise in the outputs by layer")
    cut = sorted(analysis.layers, key=lambda layer: -layer.activation.saturation)
    cut = [layer for layer in cut if layer.activation.saturation][: figures.MOST_LAYERS]
    yield "<h2>What is cut off</h2>"
    if cut:
        yield (
            "<p>Share of the values a layer reads that lie outside of its range"
            f"{_of(len(cut), total, 'most saturated')}. Clipping rare extremes is right where it makes steps finer.</p>"
        )
        yield _figure(figures.saturation(cut), "Saturation by layer")
    else:
        yield "<p>No layer reads a value outside of its range.</p>"


def _distributions(noisiest: list[LayerAnalysis], total: int) -> Iterator[str]:
    yield "<h2>Activations and weights</h2>"
    yield (
        "<p>What a layer reads, before rounding, and its weights as integers; counts on a logarithmic scale"
        f"{_of(len(noisiest), total, 'noisiest')}. Where the values fill little of the orange range, or the weights "
        "little of -127 to 127, precision is lost.</p>"
    )
    yield '<div class="layers">'
    for index, layer in enumerate(noisiest):
        activation, weight = layer.activation, layer.weight
        facts = (
            f"{layer.share:.1%} of the noise; reads {between(activation.low, activation.high)} ({activation.method}), "
            f"{percent(activation.saturation)} cut off; weights {db(weight.sqnr_db)} dB"
        )
        caption = f"<figcaption><b>{escape(layer.layer)}</b>{escape(facts)}</figcaption>"
        yield _figure(figures.distributions(layer, index), f"Distributions of {layer.layer}", caption)
    yield "</div>"


def _table(analysis: Analysis) -> Iterator[str]:
    header = (*HEADER, f"INT8 {analysis.time_unit}", f"FP32 {analysis.time_unit}")
    classes = [' class="text"' if name in _TEXT_COLUMNS else "" for name in header]
    heads = (f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, classes, strict=True))
    yield f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>'
    for layer in analysis.layers:
        row = (f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells(layer), classes, strict=True))
        yield f"<tr>{''.join(row)}</tr>"
    yield "</tbody></table></div>"


def _figure(svg: str, label: str, caption: str = "") -> str:
    return f'<figure role="img" aria-label="{escape(label)}">{caption}{svg}</figure>'


def _of(shown: int, total: int, which: str) -> str:
    return "" if shown == total else f"; the {shown} {which} of {total} are shown"

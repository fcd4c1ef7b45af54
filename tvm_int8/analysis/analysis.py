"""What `analyze` returns: a table for people, a dict for programs, a page with pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_int8.analysis.results import LayerAnalysis, Suggestion
from tvm_int8.report import table

SHOWN_SUGGESTIONS = 8
HEADER = (
    *("layer", "operator", "SQNR dB", "alone dB", "without dB", "noise"),
    *("weights dB", "weights", "activations", "method", "cut off"),
)
"""Of a table of layers, in front of the times."""


@dataclass(frozen=True)
class Analysis:
    """Where the noise in a quantised network's outputs comes from.

    Parameters
    ----------
    layers : tuple of LayerAnalysis
        Those that compute in INT8, in the order of the network.
    suggestions : tuple of Suggestion
        Layers to leave in FP32, the most worthwhile first; each adds one to those before.
    sqnr_db : float
        Of the network's outputs.
    inputs : int
        How many batches were looked at.
    time_unit : str
        "us" where times were measured, "%" of the estimated time in INT8 where not.
    int8_time, float_time : float
        Of the whole network.
    time_conditions : str
        How the times came about.
    float_layers : dict
        Convolutions and dense layers in FP32 -> why.
    """

    layers: tuple[LayerAnalysis, ...]
    suggestions: tuple[Suggestion, ...]
    sqnr_db: float
    inputs: int
    time_unit: str
    int8_time: float
    float_time: float
    time_conditions: str
    float_layers: Mapping[str, str]

    @property
    def summary(self) -> tuple[str, ...]:
        """A few lines about the network as a whole."""
        layers, unit = len(self.layers), self.time_unit
        batches = f"{self.inputs} input{'s' if self.inputs != 1 else ''}"
        lines = [
            f"SQNR of the outputs {db(self.sqnr_db)} dB on {batches}; "
            f"{layers}/{layers + len(self.float_layers)} convolution and dense layers in INT8",
            f"INT8 {self.int8_time:.1f} {unit}, FP32 {self.float_time:.1f} {unit} ({self.time_conditions})",
        ]
        return (*lines, *(f"{layer} is in FP32: {reason}" for layer, reason in self.float_layers.items()))

    def sentence(self, suggestion: Suggestion) -> str:
        """What a suggestion gains and costs."""
        cost = f"{suggestion.cost:.1f} us ({suggestion.cost_share:.1%})"
        if self.time_unit != "us":
            cost = f"about {suggestion.cost_share:.1%}"
        return f"{suggestion.layer} in FP32 gains {suggestion.gain_db:.2f} dB and costs {cost}"

    def __str__(self) -> str:
        header = (*HEADER, f"INT8 {self.time_unit}", f"FP32 {self.time_unit}")
        right = {i for i, name in enumerate(header) if name not in ("layer", "operator", "method")}
        lines = [table(header, [cells(layer) for layer in self.layers], right), *self.summary]
        if not self.suggestions:
            return "\n".join([*lines, "no layer in FP32 would lower the noise"])
        shown = self.suggestions[:SHOWN_SUGGESTIONS]
        lines.append("suggestions, one on top of the other:")
        lines += [
            f"  {self.sentence(suggestion)}: {db(suggestion.sqnr_db)} dB for {suggestion.total_share:.1%}"
            for suggestion in shown
        ]
        return "\n".join([*lines, f"all of these: {self.paste(shown[-1])}"])

    def paste(self, suggestion: Suggestion) -> str:
        """The option for all layers up to a suggestion, as Python."""
        return f"float_layers={json.dumps(suggestion.float_layers, ensure_ascii=False)}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; an infinite SQNR (no error at all) becomes None."""
        return _json(dataclasses.asdict(self))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page with tables and pictures.

        `path` holds the old content or the new, never a part.

        Raises
        ------
        ConfigError
            matplotlib is not installed, or the file cannot be written.
        """
        from tvm_int8.analysis.html import write_page

        write_page(self, os.fspath(path))


def cells(layer: LayerAnalysis) -> tuple[str, ...]:
    """A layer's row of a table."""
    weight, activation = layer.weight, layer.activation
    return (
        layer.layer,
        layer.op.removeprefix("nn."),
        "" if layer.sqnr_db is None else db(layer.sqnr_db),
        db(layer.alone_db),
        db(layer.without_db),
        f"{layer.share:.1%}",
        db(weight.sqnr_db),
        between(weight.low, weight.high),
        between(activation.low, activation.high),
        activation.method,
        percent(activation.saturation),
        f"{layer.int8_time:.1f}",
        f"{layer.float_time:.1f}",
    )


def db(value: float) -> str:
    """Decibels, to a tenth."""
    return f"{value:.1f}"


def between(low: float, high: float) -> str:
    """A range, to three digits."""
    return f"{low:.3g} .. {high:.3g}"


def percent(share: float) -> str:
    """A share, to two digits: most are small."""
    return f"{100 * share:.2g} %" if share else "0"


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

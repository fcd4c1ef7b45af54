"""What quantisers make of a network, as a table and as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TITLES = {
    "fp32": "FP32 (ONNX Runtime)",
    "fast": 'tvm_int8, "fast"',
    "default": "tvm_int8",
    "best": 'tvm_int8, "best"',
    "ort": "ONNX Runtime",
    "ort_entropy": "ONNX Runtime, entropy",
    "ort_percentile": "ONNX Runtime, percentile",
    "nncf": "NNCF (OpenVINO)",
}
"""Row to its name in tables and pictures."""


@dataclass(frozen=True)
class Row:
    """What one quantiser makes of a network; None where it does not apply.

    Attributes
    ----------
    name : str
        Key of `TITLES`.
    score : float
        The metric, in [0, 1].
    points_lost : float
        FP32's score without this one, in hundredths.
    equal_decisions : float
        Share of the test inputs, or of whatever is decided, on which INT8 decides like FP32.
    sqnr_db : float
        Of all outputs against FP32's; infinite for FP32.
    quantize_s : float
        Seconds of calibrating and quantising, without generating code.
    float_layers : int
        Convolutions and dense layers in FP32 (ours).
    latency : float
        Relative to preset "fast" (ours).
    absent : str
        Why there is no such row.
    """

    name: str
    score: float | None = None
    points_lost: float | None = None
    equal_decisions: float | None = None
    sqnr_db: float | None = None
    quantize_s: float | None = None
    float_layers: int | None = None
    latency: float | None = None
    absent: str = ""


@dataclass(frozen=True)
class Comparison:
    """The rows of a network, FP32's first; printed, a Markdown table."""

    network: str
    metric: str
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        shown = [column for column in _COLUMNS if any(getattr(row, column) is not None for row in self.rows)]
        header = [self.network, *(_COLUMNS[column][0].format(metric=self.metric) for column in shown)]
        lines = [header, ["---", *["---:"] * len(shown)], *(_cells(row, shown) for row in self.rows)]
        absent = [f"{TITLES[row.name]}: {row.absent}" for row in self.rows if row.absent]
        return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *absent])


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "score": ("{metric}", lambda value: f"{value:.1%}"),
    "points_lost": ("points lost", lambda value: f"{value + 0.0:.2f}"),
    "equal_decisions": ("decisions as in FP32", lambda value: f"{value:.2%}"),
    "sqnr_db": ("SQNR dB", lambda value: f"{value:.1f}"),
    "quantize_s": ("s to quantise", lambda value: f"{value:.1f}"),
    "float_layers": ("layers in FP32", str),
    "latency": ("latency", lambda value: f"{value:.2f}x"),
}
"""Field of a row to its heading and format."""


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    values = ((getattr(row, column), _COLUMNS[column][1]) for column in columns)
    return [TITLES[row.name], *("" if value is None else show(value) for value, show in values)]


def load(path: Path) -> list[Comparison]:
    """Read what `save` wrote."""
    stored = json.loads(path.read_text())
    return [Comparison(c["network"], c["metric"], tuple(Row(**row) for row in c["rows"])) for c in stored]


def save(comparison: Comparison, path: Path) -> list[Comparison]:
    """Add a network to a JSON file, in the place of an earlier comparison of it; return all that are in the file."""
    by_network = {stored.network: stored for stored in (load(path) if path.exists() else [])}
    comparisons = list({**by_network, comparison.network: comparison}.values())
    path.write_text(json.dumps([asdict(stored) for stored in comparisons], indent=1) + "\n")
    return comparisons

"""What became of each layer, for people (a table) and for programs (rows and dicts)."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .metadata import LayerRow, Memory

_SHOWN_LAYERS = 4


class Report(Sequence[LayerRow]):
    """The rows of a compiled module's layers, in the order of the model.

    Iterate over it or index it for rows, print it for a table.

    Examples
    --------
    >>> rows = [LayerRow("conv1", "nn.conv2d", "int8", "conv2d", "tuned", 38.2),
    ...         LayerRow("prob", "nn.softmax", "float32", "softmax", reason="exponentials need FP32")]
    >>> print(Report(rows).summary)
    1/1 convolution and dense layers in INT8; tuned 1/1
    """

    def __init__(self, rows: Iterable[LayerRow], memory: Memory | None = None):
        self._rows = tuple(rows)
        self.memory = memory

    def __getitem__(self, index: Any) -> Any:
        """Return a row by its position."""
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[LayerRow]:
        """Iterate over the rows."""
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"<Report: {self.summary}>"

    @property
    def summary(self) -> str:
        """One line: how many of the layers that cost time are in INT8, how many tuned, and the memory they need."""
        # A layer's last row is its own: sums of its data, for weights with zero points, come before it.
        heavy = list({row.layer: row for row in self._rows if is_multiplying(row.op)}.values())
        int8 = sum(row.precision == "int8" for row in heavy)
        tuned = sum(row.origin.startswith("tuned") for row in heavy)
        counts = f"{int8}/{len(heavy)} convolution and dense layers in INT8; tuned {tuned}/{len(heavy)}"
        return counts if self.memory is None else f"{counts}; {self.memory}"

    def __str__(self) -> str:
        header = ["layer", "operator", "precision", "kernel", "knobs", "SQNR dB"]
        cells = [[r.layer, r.op.removeprefix("nn."), r.precision, r.kernel, r.origin, _db(r.sqnr_db)] for r in self]
        if any(row.weight_bits is not None for row in self):
            header.append("bits stored")
            for row, line in zip(self, cells, strict=True):
                line.append("" if row.weight_bits is None else str(row.weight_bits))
        lines = [table(header, cells, right_aligned={5, 6}), self.summary]
        by_reason = defaultdict(list)
        for row in self._rows:
            if row.precision != "int8":
                by_reason[row.reason or "no INT8 kernel for this operator"].append(row.layer)
        if by_reason:
            lines.append("in FP32:")
            lines += [f"  {reason}: {_listed(layers)}" for reason, layers in by_reason.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return summary, memory and rows as JSON types; an infinite SQNR (no error at all) becomes None."""
        rows = [dataclasses.asdict(row) for row in self._rows]
        for row in rows:
            if row["sqnr_db"] is not None and not math.isfinite(row["sqnr_db"]):
                row["sqnr_db"] = None
        memory = None if self.memory is None else dataclasses.asdict(self.memory)
        return {"summary": self.summary, "memory": memory, "layers": rows}


def is_multiplying(op: str) -> bool:
    """Tell whether an operator is a convolution or a dense layer."""
    name = op.removeprefix("relax.").removeprefix("nn.")
    return "conv" in name or name in ("matmul", "dense", "linear", "gemm")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right_aligned: Iterable[int] = ()) -> str:
    """Return plain text with aligned columns; long cells are cut in the middle."""
    rows = [[_shortened(cell) for cell in row] for row in rows]
    right = set(right_aligned)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = ["-" * width for width in widths]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [header, rule, *rows])


def _shortened(cell: str, width: int = 48) -> str:
    return cell if len(cell) <= width else f"{cell[: width // 2 - 1]}..{cell[-(width // 2 - 1) :]}"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _listed(layers: Sequence[str]) -> str:
    more = len(layers) - _SHOWN_LAYERS
    return ", ".join(layers[:_SHOWN_LAYERS]) + (f" and {more} more" if more > 0 else "")

"""What `tvm_int8.allocate_bits` returns: how many bits every layer has, and what they achieve."""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvm_int8.atomic_file import write_atomically
from tvm_int8.bit_codes import packed_bytes
from tvm_int8.errors import ConfigError
from tvm_int8.quantization.bit_widths import INTEGER_BITS, BitWidths, WeightBits
from tvm_int8.report import table

FORMAT = "tvm_int8 bit allocation"
VERSION = 1
FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerBits:
    """A layer's weights, or the values of a tensor.

    Parameters
    ----------
    name : str
        Of the layer; of the layer that delivers the tensor, or the tensor's own.
    count : int
        Weights; values per input.
    bits : int or float
        1 to 8, on average where output channels differ; 32 for a layer in FP32.
    own_sqnr_db, output_sqnr_db : float
        Of the weights (values) themselves, and of the network's outputs with nothing else rounded; inf in FP32.
    kappa : float
        Quantisation efficiency, dB per bit, measured.
    channel_bits : tuple of int, optional
        Of every output channel, where they differ.
    """

    name: str
    count: int
    bits: float
    own_sqnr_db: float
    output_sqnr_db: float
    kappa: float
    channel_bits: tuple[int, ...] | None = None

    @property
    def widths(self) -> WeightBits:
        """What `BitWidths` takes: the bits, or those of every output channel."""
        return self.channel_bits or int(self.bits)

    @property
    def all_bits(self) -> int:
        """Of all weights together."""
        if self.channel_bits is None:
            return self.count * int(self.bits)
        return self.count * sum(self.channel_bits) // len(self.channel_bits)

    @property
    def size_bytes(self) -> int:
        """Packed, one weight's bits behind the other's, channels of the same width side by side."""
        if self.channel_bits is None:
            return packed_bytes(self.count, int(self.bits))
        per_channel = self.count // len(self.channel_bits)
        return sum(packed_bytes(per_channel * n, bits) for bits, n in Counter(self.channel_bits).items())


@dataclass(frozen=True)
class BitAllocation:
    """Bit-widths of a network; ``QuantizationConfig(bits=allocation)`` uses them.

    Parameters
    ----------
    weights, activations : tuple of LayerBits
        In the order of the network; no activations where all have 8 bits.
    method, weighting : str
        How they were found.
    predicted_sqnr_db, measured_sqnr_db : float
        Of the outputs, on calibration inputs: from noises of single layers, see `BitPrediction`; and of the network
        that is compiled with these bits.
    seconds : float
        What it took beyond calibration.
    """

    weights: tuple[LayerBits, ...]
    activations: tuple[LayerBits, ...]
    method: str
    weighting: str
    predicted_sqnr_db: float
    measured_sqnr_db: float
    seconds: float

    @property
    def size_bytes(self) -> int:
        """Of all weights, packed; scales and biases, 8 bytes per output channel whatever the bits, come on top."""
        return sum(layer.size_bytes for layer in self.weights)

    @property
    def average_bits(self) -> float:
        """Per weight."""
        return _average(self.weights)

    @property
    def average_activation_bits(self) -> float:
        """Per value of an activation: 8 where they were not allocated."""
        return _average(self.activations) if self.activations else float(INTEGER_BITS)

    @property
    def widths(self) -> BitWidths:
        """The bits alone."""
        activations = tuple((row.name, int(row.bits)) for row in self.activations)
        return BitWidths(tuple((row.name, row.widths) for row in self.weights), activations)

    def __str__(self) -> str:
        head = ("weights of", "count", "bits", "bytes", "own dB", "output dB", "dB/bit")
        parts = [table(head, [_cells(row, str(row.size_bytes)) for row in self.weights], set(range(1, 7)))]
        if any(row.bits != INTEGER_BITS for row in self.activations):
            rows = [_cells(row, "") for row in self.activations]
            parts.append(table(("activations of", *head[1:]), rows, set(range(1, 7))))
        reached = f"{self.measured_sqnr_db:.1f} dB measured, {self.predicted_sqnr_db:.1f} dB predicted"
        size = f"{self.size_bytes} bytes of weights, {self.average_bits:.2f} bits on average"
        bits = f", activations {self.average_activation_bits:.2f}"
        parts.append(f"{size}{bits}; {reached}; {self.method} ({self.weighting}), {self.seconds:.1f} s")
        return "\n".join(parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. `path` holds the old content or the new, never a part.

        Raises
        ------
        ConfigError
            When the file cannot be written.
        """
        document = {"format": FORMAT, "version": VERSION, **_plain(asdict(self))}
        try:
            write_atomically(path, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            where, action = f"bit allocation {os.fspath(path)}", "choose a path in an existing, writable directory"
            raise ConfigError(where, f"cannot be written ({error})", "", action) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BitAllocation:
        """Read what `save` wrote.

        Raises
        ------
        ConfigError
            When the file is missing, truncated, something else, or of another version.
        """
        where, again = f"bit allocation {os.fspath(path)}", "make it again with tvm_int8.allocate_bits"
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                where, f"cannot be read ({error})", "a file that BitAllocation.save wrote", again
            ) from error
        found = (document.get("format"), document.get("version")) if isinstance(document, dict) else None
        if found != (FORMAT, VERSION):
            raise ConfigError(where, f"format and version {found}", f"{(FORMAT, VERSION)}", again)
        try:
            fields = {name: _number(document[name]) for name in cls.__dataclass_fields__}
            rows = {kind: tuple(_row(row) for row in fields[kind]) for kind in ("weights", "activations")}
            loaded = cls(**{**fields, **rows})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(where, f"incomplete or changed ({error!r})", "all fields as saved", again) from error
        BitWidths.of(loaded.widths.to_dict())
        return loaded

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the bits of every layer as a PNG.

        Raises
        ------
        ConfigError
            Matplotlib is not installed, or the file cannot be written.
        """
        where = f"picture {os.fspath(path)}"
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            action = "pip install matplotlib, or print the allocation"
            raise ConfigError(where, "matplotlib is not installed", "it", action) from error
        kinds = [("weights", self.weights)]
        if any(row.bits != INTEGER_BITS for row in self.activations):
            kinds.append(("activations", self.activations))
        longest = max(len(rows) for _, rows in kinds)
        figure = Figure(figsize=(max(4.0, 0.22 * longest + 1.5), 2.6 * len(kinds) + 0.8), dpi=150, layout="constrained")
        panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
        for axes, (kind, rows) in zip(panels, kinds, strict=True):
            _draw(axes, kind, rows)
        size = f"{self.size_bytes / 1024:.1f} KiB, {self.average_bits:.2f} bits per weight"
        figure.suptitle(f"{self.method}: {size}, {self.measured_sqnr_db:.1f} dB", fontsize=10)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        try:
            write_atomically(path, file.getvalue())
        except OSError as error:
            action = "choose a path in an existing, writable directory"
            raise ConfigError(where, f"cannot be written ({error})", "", action) from error


def _average(rows: Sequence[LayerBits]) -> float:
    return sum(row.all_bits for row in rows) / max(sum(row.count for row in rows), 1)


def _cells(row: LayerBits, size: str) -> tuple[str, ...]:
    decibels = (f"{row.own_sqnr_db:.1f}", f"{row.output_sqnr_db:.1f}", f"{row.kappa:.2f}")
    bits = f"{row.bits:.0f}" if row.channel_bits is None else f"{row.bits:.2f}"
    return (row.name, str(row.count), bits, size, *decibels)


def _draw(axes: Any, kind: str, rows: Sequence[LayerBits]) -> None:
    shown = [min(row.bits, INTEGER_BITS + 1) for row in rows]
    axes.bar(range(len(rows)), shown, color=["#0072B2" if b <= INTEGER_BITS else "#E69F00" for b in shown])
    axes.set_ylim(0, INTEGER_BITS + 1)
    axes.set_ylabel(f"bits of {kind}", fontsize=8)
    axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=5)
    axes.tick_params(axis="y", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain(value: Any) -> Any:
    """JSON knows no infinity: it becomes a string."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value


def _row(fields: dict[str, Any]) -> LayerBits:
    read = {name: _number(value) for name, value in fields.items()}
    channels = read.get("channel_bits")
    return LayerBits(**{**read, "channel_bits": None if channels is None else tuple(channels)})

"""The result of calibration: a range for every tensor that is going to be quantised, in memory and as a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from tvm_int8.atomic_file import write_atomically
from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.observers import ChannelStatistics, Histogram
from tvm_int8.quantization.scale_zero_point import scale_zero_point
from tvm_int8.quantization.transformed_statistics import TransformedStatistics

FORMAT = "tvm_int8 calibration table"
VERSION = 1
_RECALIBRATE = "make the table again with tvm_int8.calibrate(model, data)"
_SHOWN_NAMES = 5


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor.

    Parameters
    ----------
    low, high : float
        Finite as float32, `low` not above `high`; 0 need not lie between.
    method : str
        What made it: a calibrator's name, "auto: " and the name of the one it chose, or how it was derived without
        data.
    batches : int
        Batches seen; 0 without data.
    histogram : Histogram, optional
        The distribution the range was chosen from.
    channels : ChannelStatistics, optional
        Per channel (axis 1), for tensors that convolutions read.
    clipping : float
        Mean square of what the range cuts off, over all values seen.
    saturation : float
        Share of all values seen that lie outside of the range.
    """

    low: float
    high: float
    method: str
    batches: int
    histogram: Histogram | None = None
    channels: ChannelStatistics | None = None
    clipping: float = 0.0
    saturation: float = 0.0

    def divided(self, factor: np.ndarray) -> TensorRange:
        """Return the range of the tensor with channel c divided by ``factor[c]``: all that its channels span.

        How much clipping pays was judged on the distribution before; most outliers are gone once channels are even.
        """
        if self.channels is None:
            raise ValueError("a range without statistics of its channels cannot be divided")
        divided = self.channels.divided(factor)
        low, high = min(divided.low), max(divided.high)
        return replace(self, low=low, high=high, histogram=None, channels=divided, clipping=0.0, saturation=0.0)


class CalibrationTable(Mapping[str, TensorRange]):
    """Ranges by tensor name; an immutable mapping.

    Parameters
    ----------
    ranges : mapping
        `TensorRange` by tensor name.
    transformed : mapping, optional
        `TransformedStatistics` by the name of a tensor that a convolution may transform: its attribute `transformed`.

    Raises
    ------
    CalibrationError
        When a range is not finite or upside down.

    Examples
    --------
    >>> table = CalibrationTable({"conv1": TensorRange(-1.0, 1.0, "minmax", 8)})
    >>> table.scale_zero_point("conv1")
    (np.float32(0.007843138), 128)
    """

    def __init__(
        self, ranges: Mapping[str, TensorRange], transformed: Mapping[str, TransformedStatistics] | None = None
    ):
        _check_ranges(ranges, "calibration table")
        self._ranges = {
            name: replace(r, low=float(r.low), high=float(r.high), batches=int(r.batches)) for name, r in ranges.items()
        }
        self.transformed = dict(transformed or {})

    def __getitem__(self, name: str) -> TensorRange:
        """Return the range of a tensor; KeyError when there is none."""
        return self._ranges[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensor names, in the order of calibration."""
        return iter(self._ranges)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._ranges)

    def __repr__(self) -> str:
        """Say how many tensors there are and how their ranges were made."""
        methods = ", ".join(sorted({r.method for r in self.values()}))
        return f"CalibrationTable({len(self)} tensors, {methods or 'empty'}, fingerprint {self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """A short hash of the tensor names: the same for the same network, whatever the data."""
        return _fingerprint(self)

    def scale_zero_point(self, name: str, dtype: str = "uint8", symmetric: bool = False) -> tuple[np.float32, int]:
        """Return a tensor's scale and zero point; the formula is `scale_zero_point.scale_zero_point`'s.

        Parameters
        ----------
        name : str
            The tensor.
        dtype : str
            ``"uint8"`` or ``"int8"``.
        symmetric : bool
            Zero in the middle of a range with negative values.

        Raises
        ------
        CalibrationError
            When the table has no such tensor.
        """
        if name not in self:
            raise CalibrationError(
                where=f"calibration table, tensor {name!r}",
                found=f"no range for it among {len(self)} tensors",
                expected="one for every tensor that is quantised",
                action=_RECALIBRATE,
            )
        return scale_zero_point(self[name].low, self[name].high, dtype, symmetric)

    def check_model(self, tensor_names: Iterable[str], points: Iterable[str] | None = None) -> None:
        """Refuse to serve a network this table was not made for.

        Parameters
        ----------
        tensor_names : iterable of str
            Every tensor of the network the table may have a range for.
        points : iterable of str, optional
            Those that need one, where some stay in FP32; all of `tensor_names` by default.

        Raises
        ------
        CalibrationError
            When a point has no range, or the table has a tensor the network has not; the message names them.
        """
        known = dict.fromkeys(tensor_names)
        needed = known if points is None else dict.fromkeys(points)
        missing = [name for name in needed if name not in self]
        unknown = [name for name in self if name not in known]
        if not missing and not unknown:
            return
        found = [f"no range for {_listed(missing)}"] if missing else []
        found += [f"ranges for {_listed(unknown)}, which the model does not have"] if unknown else []
        raise CalibrationError(
            where=f"calibration table (fingerprint {self.fingerprint}, model {_fingerprint(known)})",
            found=" and ".join(found),
            expected="a table made for this model",
            action=_RECALIBRATE,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, one line per tensor. `path` holds the old content or the new, never a part.

        Raises
        ------
        CalibrationError
            When the file cannot be written.
        """
        try:
            write_atomically(path, self._to_json())
        except OSError as error:
            where, action = f"calibration table {os.fspath(path)}", "choose a path in an existing, writable directory"
            raise CalibrationError(where, f"cannot be written ({error})", "", action) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a table that `save` wrote.

        Raises
        ------
        CalibrationError
            When the file is missing, truncated, something else, or of a version this one cannot read.
        """
        where = f"calibration table {os.fspath(path)}"
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
        except OSError as error:
            raise CalibrationError(where, f"cannot be read ({error})", "a file", "check the path") from error
        except (ValueError, RecursionError) as error:
            found = f"not JSON ({error}): truncated, or a different kind of file"
            raise CalibrationError(where, found, f"a {FORMAT}", _RECALIBRATE) from error
        tensors = _check_document(document, where)
        ranges = {name: _range_from_json(entry, f"{where}, tensor {name!r}") for name, entry in tensors.items()}
        _check_ranges(ranges, where)
        return cls(ranges, _transformed_from_json(document.get("transformed", {}), where))

    def _to_json(self) -> str:
        header = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
        tensors = ",\n".join(f"{json.dumps(name)}: {_range_to_json(r)}" for name, r in self.items())
        found = {name: json.dumps(seen.to_dict(), separators=(",", ":")) for name, seen in self.transformed.items()}
        transformed = ",\n".join(f"{json.dumps(name)}: {text}" for name, text in found.items())
        parts = {"tensors": tensors, "transformed": transformed} if found else {"tensors": tensors}
        lines += [f'"{key}": {{\n{entries}\n}}' for key, entries in parts.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _fingerprint(names: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:16]


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES]))
    return shown + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def _check_ranges(ranges: Mapping[str, TensorRange], where: str) -> None:
    largest = float(np.finfo(np.float32).max)
    for name, r in ranges.items():
        if not (_is_number(r.low) and _is_number(r.high) and -largest <= r.low <= r.high <= largest):
            found, expected = f"range {r.low!r} .. {r.high!r}", "two finite float32 numbers, the lower first"
        elif not (_is_number(r.clipping) and 0 <= r.clipping < math.inf):
            found, expected = f"clipping {r.clipping!r}", "a mean square"
        elif not (_is_number(r.saturation) and 0 <= r.saturation <= 1):
            found, expected = f"saturation {r.saturation!r}", "a share, 0 to 1"
        elif not isinstance(r.method, str) or not isinstance(r.batches, Integral) or r.batches < 0:
            found, expected = f"method {r.method!r}, {r.batches!r} batches", "a name and a count"
        else:
            continue
        raise CalibrationError(f"{where}, tensor {name!r}", found, expected, _RECALIBRATE)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_document(document: Any, where: str) -> Mapping[str, Any]:
    """Return the tensors of a parsed file after checking what stands around them."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CalibrationError(where, "a JSON file of another kind", f'"format": "{FORMAT}"', "check the path")
    if document.get("version") != VERSION:
        found, action = f"version {document.get('version')!r}", f"use the tvm_int8 that wrote it, or {_RECALIBRATE}"
        raise CalibrationError(where, found, f"version {VERSION}", action)
    tensors = document.get("tensors")
    if not isinstance(tensors, dict):
        raise CalibrationError(where, 'no "tensors"', "a range by tensor name", _RECALIBRATE)
    if document.get("fingerprint") != _fingerprint(tensors):
        found = f"fingerprint {document.get('fingerprint')!r}, but tensor names that give {_fingerprint(tensors)!r}"
        raise CalibrationError(where, found, "the names it was saved with: tensors were added or lost", _RECALIBRATE)
    return tensors


def _transformed_from_json(entries: Any, where: str) -> dict[str, TransformedStatistics]:
    if not isinstance(entries, dict):
        raise CalibrationError(where, '"transformed" is no object', "statistics by tensor name", _RECALIBRATE)
    found = {}
    for name, entry in entries.items():
        try:
            found[name] = TransformedStatistics.from_dict(entry)
        except (KeyError, TypeError, ValueError) as error:
            tensor, expected = f"{where}, transformed tensor {name!r}", "statistics by position and channel"
            raise CalibrationError(tensor, f"an entry that does not fit ({error})", expected, _RECALIBRATE) from error
    return found


def _range_to_json(r: TensorRange) -> str:
    entry = asdict(r)
    entry = {key: value for key, value in entry.items() if value is not None}
    return json.dumps(entry, allow_nan=False)


def _range_from_json(entry: Any, where: str) -> TensorRange:
    try:
        histogram = entry.get("histogram")
        if histogram is not None:
            histogram = Histogram(**{**histogram, "counts": tuple(histogram["counts"])})
            whole = all(isinstance(x, int) and x >= 0 for x in histogram.counts) and isinstance(histogram.first, int)
            if not (whole and isinstance(histogram.width, Real) and math.isfinite(histogram.width)):
                raise ValueError("histogram of something else than counts")
        channels = entry.get("channels")
        if channels is not None:
            channels = ChannelStatistics(**{key: tuple(map(float, values)) for key, values in channels.items()})
            if len({len(values) for values in (channels.low, channels.high, channels.mean, channels.mean_square)}) > 1:
                raise ValueError("channel statistics of different lengths")
        return TensorRange(**{**entry, "histogram": histogram, "channels": channels})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = '"low", "high", "method", "batches" and perhaps "histogram"'
        raise CalibrationError(where, f"an entry that does not fit ({error})", expected, _RECALIBRATE) from error

"""The user's calibration data, whatever its form, as a checked stream of batches the model can run.

What is understood, with shapes of a model whose input is [2, 3, 32, 32]:

- an array or torch tensor, all samples along the first axis: [100, 3, 32, 32] gives 50 batches; also a stack of ready
  batches, [50, 2, 3, 32, 32];
- a dict of such arrays by input name, or the path of an .npz with them, or of an .npy;
- any iterable of batches: a list, a generator, a torch DataLoader. A batch is an array, a dict by input name, or a
  tuple or list by position, whose entries beyond the model's inputs (labels) are ignored. A batch of several times the
  model's batch size is cut into pieces.

Samples at the end that do not fill a batch are left out, with a warning. An iterable is consumed once and nothing of
it is kept.
"""

from __future__ import annotations

import operator
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.data_free import CalibrationWarning

_A_BATCH = "an array, a dict by input name, or a tuple or list of arrays by position"
_LIKE_INFERENCE = "preprocess the calibration data exactly as for inference"


class InputSpec(NamedTuple):
    """What the model takes as one input: name, static shape, dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class CalibrationBatches:
    """Iterate over calibration data as dicts from input name to an array of exactly the input's shape and dtype.

    Parameters
    ----------
    data : object
        See the module's description.
    inputs : sequence of InputSpec
        The model's inputs in order.

    Raises
    ------
    CalibrationError
        At once for a file that cannot be read or data that is not iterable; while iterating for a batch with wrong
        names, shape, dtype or values that are not finite, and at the end if there was no batch at all. Batches count
        from 0.
    """

    def __init__(self, data: Any, inputs: Sequence[InputSpec]):
        self._inputs = [InputSpec(spec[0], tuple(spec[1]), *map(str, spec[2:])) for spec in inputs]
        if isinstance(data, str | os.PathLike):
            data = _load(os.fspath(data), [spec.name for spec in self._inputs])
        self._is_one_dataset = isinstance(data, Mapping) or _is_array(data)
        if not self._is_one_dataset and not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
            expected = "an array, a dict of arrays, the path of an .npy or .npz file, or an iterable of batches"
            raise CalibrationError("calibration data", f"a {type(data).__name__}", expected, "pass one of these")
        self._data = data

    def __length_hint__(self) -> int:
        """Guess the number of batches, for a progress bar; 0 when it cannot be known."""
        if not self._is_one_dataset:
            return operator.length_hint(self._data, 0)
        arrays = self._by_name(self._data, "calibration data")
        return min((_batch_count(arrays[spec.name], spec, "calibration data")[0] for spec in self._inputs), default=0)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches one after the other."""
        produced = dropped = 0
        for index, element in enumerate([self._data] if self._is_one_dataset else self._data):
            where = "calibration data" if self._is_one_dataset else f"calibration batch {index}"
            arrays = self._by_name(element, where)
            count, left_over = self._count(arrays, where)
            if count == 0 and produced == 0:
                raise _shape_error(arrays[self._inputs[0].name], self._inputs[0], where)
            dropped += left_over
            for i in range(count):
                where = f"calibration batch {i if self._is_one_dataset else index}"
                yield {s.name: _convert(_batch_at(arrays[s.name], s, i), s, where) for s in self._inputs}
                produced += 1
        if produced == 0:
            found, action = "no batch at all", "pass at least one; a generator can be iterated only once"
            raise CalibrationError("calibration data", found, "some 100 to 500 typical inputs", action)
        if dropped:
            message = f"{dropped} calibration samples were left out: they did not fill a batch of the model's size"
            warnings.warn(CalibrationWarning(message), stacklevel=2)

    def _by_name(self, element: Any, where: str) -> dict[str, np.ndarray]:
        """Return the arrays of a batch, or of the whole data set, by input name."""
        names = [spec.name for spec in self._inputs]
        if isinstance(element, Mapping):
            missing, unknown = [n for n in names if n not in element], [n for n in element if n not in names]
            if missing or unknown:
                found = f"missing {missing}, unknown {unknown}" if missing else f"unknown names {unknown}"
                raise CalibrationError(where, found, f"exactly the inputs {names}", "name the arrays like the inputs")
        elif isinstance(element, tuple | list) or _is_array(element):
            values = element if isinstance(element, tuple | list) else [element]
            if len(values) < len(names):
                found, expected = f"{len(values)} arrays", f"{len(names)}, for the inputs {names}"
                raise CalibrationError(where, found, expected, "pass a tuple or a dict with an array for each input")
            element = dict(zip(names, values, strict=False))
        else:
            raise CalibrationError(where, f"a {type(element).__name__}", _A_BATCH, "convert it")
        return {name: _to_array(element[name], f"{where}, input {name!r}") for name in names}

    def _count(self, arrays: Mapping[str, np.ndarray], where: str) -> tuple[int, int]:
        """Return how many model batches the arrays hold and how many samples are left over."""
        counts = {spec.name: _batch_count(arrays[spec.name], spec, where) for spec in self._inputs}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count[0]} batches for input {name!r}" for name, count in counts.items())
            raise CalibrationError(where, found, "the same number of samples for each input", _LIKE_INFERENCE)
        return next(iter(counts.values()))


def _load(path: str, names: list[str]) -> Any:
    """Return the array of an .npy file (memory-mapped), or the model's inputs from an .npz file."""
    where = f"calibration data {path}"
    if not path.endswith((".npy", ".npz")):
        raise CalibrationError(where, "a path", "one that ends in .npy or .npz", "pass such a file, or the arrays")
    try:
        if path.endswith(".npy"):
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if all(name in archive.files for name in names):
                return {name: archive[name] for name in names}
            if len(names) == len(archive.files) == 1:
                return archive[archive.files[0]]
            found = f"arrays {archive.files}"
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CalibrationError(where, f"cannot be read ({error})", "a NumPy file", "check the path") from error
    raise CalibrationError(where, found, f"arrays named like the inputs: {names}", "save it with these names")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach") or hasattr(value, "__array__")


def _to_array(value: Any, where: str) -> np.ndarray:
    if not _is_array(value):
        raise CalibrationError(where, f"a {type(value).__name__}", "an array or a tensor", "convert it")
    try:
        return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except TypeError as error:  # a torch dtype NumPy does not have
        raise CalibrationError(where, str(error), "a dtype NumPy knows", "convert it to float32") from error


def _batch_count(array: np.ndarray, spec: InputSpec, where: str) -> tuple[int, int]:
    """Return the number of model batches in an array and the samples left over."""
    if array.shape == spec.shape:
        return 1, 0
    if array.ndim == len(spec.shape) > 0 and array.shape[1:] == spec.shape[1:]:
        return divmod(array.shape[0], spec.shape[0])
    if array.ndim == len(spec.shape) + 1 and array.shape[1:] == spec.shape:
        return array.shape[0], 0
    raise _shape_error(array, spec, where)


def _batch_at(array: np.ndarray, spec: InputSpec, index: int) -> np.ndarray:
    if array.shape == spec.shape:
        return array
    if array.ndim == len(spec.shape) + 1:
        return array[index]
    return array[index * spec.shape[0] : (index + 1) * spec.shape[0]]


def _shape_error(array: np.ndarray, spec: InputSpec, where: str) -> CalibrationError:
    action = _LIKE_INFERENCE
    if array.shape == spec.shape[1:]:
        action = "add the batch axis: x[None]"
    elif array.ndim == len(spec.shape) == 4 and (array.shape[3], *array.shape[1:3]) == spec.shape[1:]:
        action = "the model takes NCHW: x.transpose(0, 3, 1, 2)"
    expected = f"shape {list(spec.shape)} (or more samples along the first axis)"
    return CalibrationError(f"{where}, input {spec.name!r}", f"shape {list(array.shape)}", expected, action)


def _convert(array: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """Return a batch in the input's dtype, after checking that this changes no value beyond rounding to float."""
    where, dtype = f"{where}, input {spec.name!r}", np.dtype(spec.dtype)
    if array.dtype.kind not in ("fiub" if dtype.kind == "f" else "iub"):
        expected = f"{dtype} or a type that converts to it without loss"
        raise CalibrationError(where, f"dtype {array.dtype}", expected, "convert it explicitly")
    with np.errstate(over="ignore"):
        converted = np.require(array, dtype, ["C", "W", "E"])  # a memory-mapped file is read-only: copied
    if dtype.kind == "f":
        bad = converted.size - np.count_nonzero(np.isfinite(converted))
        if bad:
            found, action = f"{bad} of {converted.size} values are NaN or infinite", "remove or repair this sample"
            raise CalibrationError(where, found, f"finite {dtype} values", action)
    elif not np.can_cast(array.dtype, dtype) and not np.array_equal(converted, array):
        found = f"{array.dtype} values from {array.min()} to {array.max()}"
        raise CalibrationError(where, found, f"values that fit into {dtype}", _LIKE_INFERENCE)
    return converted

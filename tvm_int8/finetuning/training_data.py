"""The user's inputs and labels, checked, as batches of PyTorch in an order that a seed decides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tvm_int8.errors import CalibrationError
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import dtype_of, shape_of
from tvm_int8.quantization.data import CalibrationBatches, InputSpec

from .losses import IGNORED

Augment = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
_HASHED = 64  # samples


class TrainingData:
    """Samples by number.

    Parameters
    ----------
    data : whatever `compile` takes as calibration data, but a table
    labels : int array [N] or [N, H, W], path of an .npy file, or None
    flow : Dataflow
        Of the float network.
    inputs : sequence of str
        Its inputs' names.
    augment : callable, optional
        Changes a batch (input name -> array), with a random generator.

    Raises
    ------
    CalibrationError
        They do not fit the model, or one another.
    """

    def __init__(self, data: Any, labels: Any, flow: Dataflow, inputs: Sequence[str], augment: Augment | None):
        specs = [InputSpec(n, shape_of(p), dtype_of(p)) for n, p in zip(inputs, flow.params, strict=True)]
        try:
            self._samples = list(CalibrationBatches(data, specs))
        except CalibrationError as error:
            where = error.where.replace("calibration", "training")
            action = error.action.replace("calibration", "training")
            raise CalibrationError(where, error.found, error.expected, action) from error
        self._inputs, self._augment = list(inputs), augment
        self._samples_each = specs[0].shape[0]
        self.labels = None if labels is None else self._checked(labels, shape_of(flow.outputs[0]))

    @property
    def augments(self) -> bool:
        """Whether inputs are others each time."""
        return self._augment is not None

    def __len__(self) -> int:
        return len(self._samples)

    def _checked(self, labels: Any, output: tuple[int, ...]) -> np.ndarray:
        if isinstance(labels, str | os.PathLike):
            labels = _read(os.fspath(labels))
        array = np.asarray(labels)
        wanted = len(self) * self._samples_each
        shapes = [(wanted,), (wanted, *output[2:])]
        if array.dtype.kind not in "iu" or array.shape not in shapes or len(output) < 2:
            found, expected = f"{array.dtype} {list(array.shape)}", f"integers {list(shapes[-1])}, one for each sample"
            raise CalibrationError("labels", found, expected, "leave them out to learn from the FP32 network alone")
        array, classes = array.astype(np.int64), output[1]
        ignored = np.isin(array, IGNORED)
        if ((array < 0) | (array >= classes))[~ignored].any():
            found = f"values from {array.min()} to {array.max()}"
            raise CalibrationError("labels", found, f"classes 0 to {classes - 1}, or {IGNORED} for none", "check them")
        return np.where(ignored, IGNORED[0], array).reshape(len(self), self._samples_each, *array.shape[1:])

    def batch(self, numbers: Sequence[int], seed: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Inputs in order, and labels, of some samples; `seed` is for augmenting them."""
        chosen = [self._samples[i] for i in numbers]
        arrays = {name: np.concatenate([sample[name] for sample in chosen]) for name in self._inputs}
        if self._augment is not None:
            arrays = self._augmented(arrays, np.random.default_rng(seed))
        labels = None if self.labels is None else torch.from_numpy(np.concatenate(self.labels[list(numbers)]))
        return [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self._inputs], labels

    def _augmented(self, arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self._augment is not None
        changed = self._augment(dict(arrays), rng)
        for name, array in arrays.items():
            found = changed.get(name) if isinstance(changed, dict) else None
            if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != (array.shape, array.dtype):
                expected = f"a dict with {array.dtype} {list(array.shape)} for input {name!r}"
                raise CalibrationError("augment", "something else", expected, "return the batch, changed")
        return changed

    def fingerprint(self) -> str:
        """Of some samples and all labels: changes where training would."""
        digest = hashlib.sha256(str((len(self), self._augment is not None)).encode())
        for i in np.unique(np.linspace(0, len(self) - 1, _HASHED).astype(int)):
            for name in self._inputs:
                digest.update(self._samples[i][name].tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()


def _read(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(
            f"labels {path}", f"cannot be read ({error})", "an .npy file", "check the path"
        ) from error

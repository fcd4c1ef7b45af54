"""The state of a training on disk, so that it goes on where it was stopped and ends as if it had not been."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm

from tvm_int8.atomic_file import write_atomically
from tvm_int8.errors import ArtifactError
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name, shape_of, vars_in
from tvm_int8.passes.quantizers import Quantizers

FORMAT = "tvm_int8 fine-tuning checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """A file, and what it must have been made with.

    Parameters
    ----------
    path : path
    identity : mapping of str to str
        What is trained and how ("model", "quantisation", "data", "options") -> its fingerprint.
    """

    path: str | os.PathLike[str]
    identity: Mapping[str, str]

    def save(self, state: Mapping[str, Any]) -> None:
        """Write it: the path holds the old state or the new, never a part.

        Raises
        ------
        ArtifactError
            The file cannot be written.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "identity": dict(self.identity), **state}, buffer)
        try:
            write_atomically(self.path, buffer.getvalue())
        except OSError as error:
            found = f"cannot be written ({error.strerror or error})"
            raise ArtifactError(self._where, found, "", "choose a path in an existing, writable directory") from error

    def load(self) -> dict[str, Any] | None:
        """The state; None where there is no file.

        Raises
        ------
        ArtifactError
            It cannot be read, or belongs to another training.
        """
        action = "pass resume=False to begin anew, or another path"
        try:
            with open(self.path, "rb") as file:
                state = torch.load(io.BytesIO(file.read()), weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            text = " ".join(str(error).split())[:100]
            raise ArtifactError(self._where, f"cannot be read ({text})", "a checkpoint", action) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ArtifactError(self._where, "something else", FORMAT, action)
        differs = [part for part, mark in self.identity.items() if state["identity"].get(part) != mark]
        if differs:
            raise ArtifactError(self._where, f"of another training: its {', '.join(differs)} differ", "", action)
        return state

    @property
    def _where(self) -> str:
        return f"checkpoint {os.fspath(self.path)}"


def fingerprint_of_model(mod: tvm.IRModule) -> str:
    """Of the operators, shapes and constants of a float network."""
    digest = hashlib.sha256()
    for binding in Dataflow(mod).bindings:
        value = binding.value
        words = (binding.var.name, op_name(value), shape_of(binding.var) if op_name(value) != "split" else ())
        digest.update(str((*words, [var.name for var in vars_in(value)], str(getattr(value, "attrs", "")))).encode())
        for arg in getattr(value, "args", ()):
            array = const_value(arg)
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_of_quantizers(quantizers: Quantizers) -> str:
    """Of all scales, zero points, bits and integers."""
    digest = hashlib.sha256()
    for name, data in quantizers.activations.items():
        digest.update(str((name, data.bits, data.dtype)).encode())
        digest.update(data.scale.tobytes() + data.zero_point.tobytes())
    for name, weight in quantizers.weights.items():
        digest.update(str((name, weight.channel_bits or weight.bits)).encode())
        for array in (weight.values, weight.scale, weight.exact, weight.lowest, weight.correction):
            digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()

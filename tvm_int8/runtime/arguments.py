"""The user's arrays, checked, and copied into aligned buffers unless kernels can read them where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from ..errors import TvmInt8Error
from ..metadata import TensorInfo


class InputError(TvmInt8Error, ValueError):
    """What a compiled module is called with does not fit its inputs."""


class InputBuffers:
    """One buffer per input, reused by every call.

    Parameters
    ----------
    infos : sequence of TensorInfo
        The inputs in order.
    alignment : int
        Bytes at a multiple of which kernels expect their inputs to begin.
    """

    def __init__(self, infos: Sequence[TensorInfo], alignment: int = 64):
        self._infos, self._alignment = infos, alignment
        self.tensors = [tvm.runtime.empty(info.shape, info.dtype) for info in infos]
        self._views = [np.from_dlpack(tensor) for tensor in self.tensors]

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy checked arrays (of any strides) into the buffers, in the inputs' dtypes."""
        for view, array in zip(self._views, arrays, strict=True):
            np.copyto(view, array, casting="unsafe")

    def place(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Return tensors for one run: of the arrays' own memory where kernels can read it, else of the buffers.

        The copy is not cheap: after a run, neither array nor buffer is left in the fast caches.
        """
        tensors = []
        for tensor, view, array in zip(self.tensors, self._views, arrays, strict=True):
            if self._is_readable(array, view):
                tensors.append(tvm_ffi.from_dlpack(array))  # TVM's own asks for 64 bytes
            else:
                np.copyto(view, array, casting="unsafe")
                tensors.append(tensor)
        return tensors

    def _is_readable(self, array: np.ndarray, buffer: np.ndarray) -> bool:
        """Whether kernels can read an array as if it were the buffer; DLPack wants it writable."""
        flags = array.flags
        if array.dtype != buffer.dtype or not (flags.c_contiguous and flags.writeable and array.size):
            return False
        return array.__array_interface__["data"][0] % self._alignment == 0


def by_name(inputs: Any, infos: Sequence[TensorInfo]) -> list[Any]:
    """Return the values of a dict from input name to value, in order."""
    names = [info.name for info in infos]
    if not isinstance(inputs, Mapping):
        action = "pass a dict, or call the module with arrays by position"
        raise InputError("inputs", f"a {type(inputs).__name__}", f"a dict with {_listed(names)}", action)
    missing = [name for name in names if name not in inputs]
    unknown = [str(name) for name in inputs if name not in names]
    if missing or unknown:
        found = [f"no {_listed(missing)}"] if missing else []
        found += [f"unknown {_listed(unknown)}"] if unknown else []
        raise InputError("inputs", " and ".join(found), f"exactly {_listed(names)}", "name them as the model does")
    return [inputs[name] for name in names]


def by_position(values: Sequence[Any], infos: Sequence[TensorInfo]) -> list[Any]:
    """Return `values` after checking that there is one per input."""
    if len(values) != len(infos):
        expected = f"{len(infos)}: {'; '.join(map(str, infos))}"
        raise InputError("inputs", f"{len(values)} arrays", expected, "pass one array per input, in this order")
    if len(values) == 1 and isinstance(values[0], Mapping):
        raise InputError("inputs", "a dict", "arrays by position", "pass a dict to module.run(...)")
    return list(values)


def any_form(inputs: Any, infos: Sequence[TensorInfo]) -> list[Any]:
    """Return values in order from None (made up), a dict, a list or tuple by position, or the only input's array."""
    if inputs is None:
        return random_inputs(infos)
    if isinstance(inputs, Mapping):
        return by_name(inputs, infos)
    return by_position(inputs if isinstance(inputs, list | tuple) else [inputs], infos)


def random_inputs(infos: Sequence[TensorInfo]) -> list[np.ndarray]:
    """Return made-up inputs, always the same: normal floats, uint8 over its range, zeros for other integers."""
    rng = np.random.default_rng(0)
    arrays = []
    for info in infos:
        dtype = np.dtype(info.dtype)
        if dtype.kind == "f":
            arrays.append(rng.standard_normal(info.shape, np.float32).astype(dtype))
        elif dtype == np.uint8:
            arrays.append(rng.integers(0, 256, info.shape, dtype))
        else:
            arrays.append(np.zeros(info.shape, dtype))
    return arrays


def check(value: Any, info: TensorInfo) -> np.ndarray:
    """Return `value` as an array that can be copied into the input.

    Parameters
    ----------
    value : array or tensor
        Anything NumPy can see as an array of numbers, a torch tensor included; any strides.
    info : TensorInfo
        The input. A float input takes floats and integers, an integer input takes integers that fit.

    Raises
    ------
    InputError
        Type, shape or dtype do not fit.
    """
    where = f"input {info.name!r}"
    array = _to_array(value, where)
    if array.shape != tuple(info.shape):
        raise InputError(where, f"shape {list(array.shape)}", f"{list(info.shape)}", _shape_advice(array.shape, info))
    dtype = np.dtype(info.dtype)
    allowed = "fiub" if dtype.kind == "f" else "iub"
    if array.dtype.kind not in allowed:
        raise InputError(where, f"dtype {array.dtype}", f"{dtype}, or what converts to it", "convert it explicitly")
    if dtype.kind != "f" and not np.can_cast(array.dtype, dtype) and not np.array_equal(array.astype(dtype), array):
        found = f"{array.dtype} values from {array.min()} to {array.max()}"
        raise InputError(where, found, f"values that fit into {dtype}", "preprocess as for the original model")
    return array


def _to_array(value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "detach"):
            return value.detach().cpu().numpy()
        if hasattr(value, "__array__") or isinstance(value, np.generic | int | float):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(where, str(error), "something NumPy can read", "convert it to float32") from error
    raise InputError(where, f"a {type(value).__name__}", "a NumPy array or a tensor", "convert it with np.asarray")


def _shape_advice(shape: tuple[int, ...], info: TensorInfo) -> str:
    if shape == tuple(info.shape[1:]):
        return "add the batch axis: x[None]"
    if len(shape) == len(info.shape) == 4 and (shape[0], shape[3], *shape[1:3]) == tuple(info.shape):
        return "the model takes NCHW: x.transpose(0, 3, 1, 2)"
    if shape[1:] == tuple(info.shape[1:]):
        return "shapes are static: compile for this batch size, or pass the samples in pieces"
    return "preprocess as for the original model"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) if names else "nothing"

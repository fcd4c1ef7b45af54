"""`load_model`: one entry for every kind of model."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import tvm

from ..errors import ModelError, TvmInt8Error
from .messages import reason_of
from .onnx_importer import import_onnx
from .relax_importer import import_relax

_KINDS = "a path, bytes, onnx.ModelProto, tvm.IRModule or torch.export.ExportedProgram"


def load_model(model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> tvm.IRModule:
    """Import a trained network.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, tvm.IRModule or torch.export.ExportedProgram
        The network: an ``.onnx`` file (with external data beside it), its bytes or proto; a Relax module (its function
        ``main`` if it has several); an exported PyTorch program, or a ``.pt2`` file `torch.export.save` wrote.
    input_shapes : mapping of str to sequence of int, optional
        The shape of inputs with symbolic dimensions, by input name.

    Returns
    -------
    tvm.IRModule
        One function ``main`` of one dataflow block, with static shapes, float32 (or the integers the model asks for)
        inputs, weights as constants, NCHW convolutions, and the function attributes ``input_names``, ``output_names``
        and ``layer_names`` (variable name -> the model's own name of the layer).

    Raises
    ------
    ModelError
        The model cannot be read, or uses what this compiler does not support.
    """
    try:
        return _import(model, dict(input_shapes or {}))
    except TvmInt8Error:
        raise
    except Exception as error:  # a damaged file can fail anywhere
        where = str(model) if isinstance(model, str | os.PathLike) else type(model).__name__
        found = f"cannot be imported ({reason_of(error)})"
        raise ModelError(where, found, "an intact model", "export or download the model again") from error


def _import(model, input_shapes: dict[str, Sequence[int]]) -> tvm.IRModule:
    if isinstance(model, tvm.IRModule):
        return import_relax(model, input_shapes)
    if isinstance(model, tvm.relax.Function):
        return import_relax(tvm.IRModule({"main": model}), input_shapes)
    if isinstance(model, str | os.PathLike):
        if _is_torch_archive(Path(model)):
            from .torch_program import import_pt2

            return import_pt2(Path(model), input_shapes)
        return import_onnx(model, input_shapes)
    if isinstance(model, onnx.ModelProto | bytes | bytearray | memoryview):
        return import_onnx(model, input_shapes)
    if _is_from_torch(model):
        from .torch_program import import_torch

        return import_torch(model, input_shapes)
    raise ModelError(
        "model", f"is a {type(model).__module__}.{type(model).__qualname__}", _KINDS, "hand in one of these"
    )


def _is_torch_archive(path: Path) -> bool:
    return path.suffix in (".pt2", ".pt", ".pth") or (path.is_file() and zipfile.is_zipfile(path))


def _is_from_torch(model) -> bool:
    return any(base.__module__.split(".")[0] == "torch" for base in type(model).__mro__)

"""Read an ONNX model and check it before anything is imported: one clear sentence for every way a file can be wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ..errors import ModelError
from .messages import reason_of

_EXPORT_AGAIN = "export or download the model again"
_OLDEST_IR_WITH_FREE_INITIALIZERS = 4


def read_onnx(model: str | os.PathLike | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Parse a model, its external data included, and check it.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        What to read. External data is looked for beside a path; it cannot be found for bytes.

    Returns
    -------
    (onnx.ModelProto, str)
        The model, and what to call it in messages.

    Raises
    ------
    ModelError
        The file is missing, empty, truncated or not ONNX; its external data is missing; or the model is not valid.
    """
    if isinstance(model, onnx.ModelProto):
        proto, where = model, "ONNX model"
    elif isinstance(model, bytes | bytearray | memoryview):
        where = "ONNX bytes"
        proto = _parse(bytes(model), where)
    else:
        path = Path(model)
        where = str(path)
        proto = _parse(_read_bytes(path), where)
        _load_external_data(proto, path)
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(where, "holds no ONNX graph", "a model with nodes and outputs", _EXPORT_AGAIN)
    _reject_missing_external_data(proto, where)
    return proto, where


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(str(path), "is a directory", "an .onnx file", "give the path of the model file itself")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(str(path), "no such file", "an ONNX model", "check the path") from error
    except OSError as error:
        raise ModelError(str(path), f"cannot be read ({error.strerror})", "a readable file", "check it") from error
    if not data:
        raise ModelError(str(path), "the file is empty", "an ONNX model", _EXPORT_AGAIN)
    return data


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(where, "is empty", "an ONNX model", _EXPORT_AGAIN)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(where, "is truncated or not an ONNX file", "a serialised ModelProto", _EXPORT_AGAIN) from error
    return proto


def _load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(proto, str(path.resolve().parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            str(path),
            f"its external data cannot be read ({reason_of(error)})",
            "the weight files beside the .onnx file",
            "keep both in one directory",
        ) from error


def _reject_missing_external_data(proto: onnx.ModelProto, where: str) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
            raise ModelError(
                where,
                f"weight '{tensor.name}' is stored in another file",
                "weights inside the model",
                "give the path of the .onnx file, or load it with onnx.load(path)",
            )


def check_onnx(proto: onnx.ModelProto, where: str) -> None:
    """Run ONNX's own checker over the graph's structure (not over the weights' bytes, which are checked when used).

    Raises
    ------
    ModelError
        The checker rejects the model.
    """
    skeleton = onnx.ModelProto(ir_version=max(proto.ir_version, _OLDEST_IR_WITH_FREE_INITIALIZERS))
    skeleton.opset_import.extend(proto.opset_import)
    skeleton.functions.extend(proto.functions)
    graph = skeleton.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    for value in [*graph.input, *graph.output]:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # undeclared shapes are no error of the graph
    declared = {value.name for value in graph.input}
    weights = [*proto.graph.initializer, *(sparse.values for sparse in proto.graph.sparse_initializer)]
    for tensor in weights:
        if tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise ModelError(where, f"is not a valid ONNX model ({reason_of(error)})", "", _EXPORT_AGAIN) from error


def opset_versions(proto: onnx.ModelProto) -> dict[str, int]:
    """Operator set version of every domain the model imports; the default domain is ``""``."""
    versions = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in proto.opset_import}
    versions.setdefault("", 1)
    return versions


def graph_inputs(
    proto: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None, where: str
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Static shape and dtype of every input that is not an initialiser.

    Raises
    ------
    ModelError
        A dimension is symbolic and `input_shapes` does not give it, contradicts the model, or names an unknown input;
        or an input's type is not a tensor of a supported dtype.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    given = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    reject_unknown_names(given, [value.name for value in inputs], where)
    return {value.name: (_static_shape(value, given.get(value.name)), _input_dtype(value)) for value in inputs}


def reject_unknown_names(given: Mapping[str, Sequence[int]], names: Sequence[str], where: str) -> None:
    """Raise ModelError when `given` has a key that is no input name."""
    for name in given:
        if name not in names:
            known = ", ".join(f"'{known}'" for known in names)
            raise ModelError(
                where, f"input_shapes names '{name}'", f"one of the model's inputs ({known})", "correct it"
            )


def _static_shape(value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    declared = None
    if tensor.HasField("shape"):
        declared = [dim.dim_value if dim.dim_value > 0 else (dim.dim_param or "?") for dim in tensor.shape.dim]
    return resolve_shape(value.name, declared, given)


def resolve_shape(name: str, declared: Sequence[int | str] | None, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Merge the shape a model declares with the one the user gives.

    Parameters
    ----------
    name : str
        The input's name.
    declared : sequence of int or str, or None
        A str stands for a symbolic dimension, None for an unknown rank.
    given : tuple of int or None
        The user's shape, if any.

    Raises
    ------
    ModelError
        A dimension stays symbolic, or the two contradict each other.
    """
    where = f"input '{name}'"
    if given is not None and any(not isinstance(dim, int | np.integer) or dim < 1 for dim in given):
        raise ModelError(where, f"input_shapes gives {list(given)}", "positive integers", "correct input_shapes")
    if declared is None:
        if given is None:
            raise ModelError(where, "has no declared shape", "static shapes", _how_to_give(name, [1, 3, 224, 224]))
        return tuple(int(dim) for dim in given)
    if given is None:
        for axis, dim in enumerate(declared):
            if isinstance(dim, str):
                label = f"dimension {axis}" + ("" if dim == "?" else f" ('{dim}')")
                raise ModelError(where, f"{label} is symbolic", "static shapes", _how_to_give(name, _example(declared)))
        return tuple(int(dim) for dim in declared)
    fits = len(given) == len(declared) and all(
        isinstance(d, str) or d == g for d, g in zip(declared, given, strict=True)
    )
    if not fits:
        shown = "[" + ", ".join(str(dim) for dim in declared) + "]"
        raise ModelError(
            where, f"input_shapes gives {list(given)}", f"a shape that fits {shown}", "correct input_shapes"
        )
    return tuple(int(dim) for dim in given)


def _example(declared: Sequence[int | str]) -> list[int]:
    """A plausible shape to show: the declared dimensions, 1 for a symbolic batch, 3 channels, 224 pixels."""
    defaults = [1, 3, 224, 224]
    return [
        dim if not isinstance(dim, str) else defaults[axis] if axis < len(defaults) else 1
        for axis, dim in enumerate(declared)
    ]


def _how_to_give(name: str, shape: Sequence[int]) -> str:
    return f'give it as input_shapes={{"{name}": ({", ".join(map(str, shape))}{"," if len(shape) == 1 else ""})}}'


_INPUT_DTYPES = {"float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"}
_CAST_TO_FLOAT32 = {"float16", "bfloat16", "float64"}


def supported_dtype(name: str, where: str) -> str:
    """`name` when the compiler takes it, float32 for the other floating types; ModelError for the rest."""
    if name in _CAST_TO_FLOAT32:
        return "float32"
    if name not in _INPUT_DTYPES:
        raise ModelError(where, f"has dtype {name}", "float32, an integer type or bool", "export the model in float32")
    return name


def _input_dtype(value: onnx.ValueInfoProto) -> str:
    where = f"input '{value.name}'"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            where, f"is a {(kind or 'value of unknown type').removesuffix('_type')}", "a tensor", "change it"
        )
    return supported_dtype(onnx_dtype(value.type.tensor_type.elem_type), where)


def onnx_dtype(elem_type: int) -> str:
    """Name of an ONNX element type: 1 -> ``float32``."""
    name = onnx.TensorProto.DataType.Name(elem_type) if elem_type in onnx.TensorProto.DataType.values() else "unknown"
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())

"""Walk ONNX graphs: which nodes an output needs, what a function's node means for one caller, what a tensor holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from ..errors import ModelError
from .onnx_file import onnx_dtype
from .onnx_registry import Node


def needed_nodes(protos, wanted: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that `wanted` depends on, in their order."""
    names, needed = set(wanted), []
    for proto in reversed(protos):
        if any(name in names for name in proto.output if name):
            needed.append(proto)
            names.update(name for name in proto.input if name)
            names.update(_captured(proto))
    return needed[::-1]


def _captured(proto: onnx.NodeProto) -> set[str]:
    """Names that a node's subgraphs may read from outside."""
    names: set[str] = set()
    for attribute in proto.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names.update(inner.input)
                names |= _captured(inner)
    return names


def bind_attributes(proto: onnx.NodeProto, caller: Node, function: onnx.FunctionProto) -> onnx.NodeProto:
    """A function's node with the attributes it takes from its caller filled in."""
    bound = onnx.NodeProto()
    bound.CopyFrom(proto)
    given = {attribute.name: attribute for attribute in caller.proto.attribute}
    given = {**{attribute.name: attribute for attribute in function.attribute_proto}, **given}
    del bound.attribute[:]
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = bound.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return bound


def read_tensor(tensor: onnx.TensorProto, where: str) -> np.ndarray:
    """A tensor's values; 4-bit integers come as int8 or uint8.

    Raises
    ------
    ModelError
        The dtype is not supported, or the bytes do not fit the shape.
    """
    dtype = onnx_dtype(tensor.data_type)
    if dtype in ("string", "complex64", "complex128", "undefined", "unknown"):
        raise ModelError(where, f"has dtype {dtype}", "a numeric dtype", "export the model without it")
    try:
        array = onnx.numpy_helper.to_array(tensor).reshape(tuple(tensor.dims))
    except (ValueError, TypeError) as error:
        raise ModelError(where, "its bytes do not fit its shape", f"{list(tensor.dims)}", "export it again") from error
    if dtype in ("int4", "uint4", "int2", "uint2"):
        return array.astype(np.int8 if dtype.startswith("int") else np.uint8)
    return array

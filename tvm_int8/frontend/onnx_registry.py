"""The table of ONNX operators this frontend imports itself, and the node a handler is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx

from ..errors import ModelError

HANDLERS: dict[tuple[str, str], Callable] = {}
MICROSOFT = "com.microsoft"


@dataclass
class Node:
    """An ONNX node, decoded.

    Attributes
    ----------
    label : str
        The node's name, or its first output's when it has none.
    opset : int
        Version of the operator set of the node's domain.
    """

    op_type: str
    domain: str
    label: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int
    proto: onnx.NodeProto = field(repr=False)

    @classmethod
    def decode(cls, proto: onnx.NodeProto, opsets: dict[str, int], prefix: str = "") -> Node:
        """Read `proto`; `prefix` is put before the label of a node that lives in a function or a branch."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        outputs = list(proto.output)
        label = proto.name or next((name for name in outputs if name), proto.op_type)
        attributes = {attribute.name: _attribute_value(attribute) for attribute in proto.attribute}
        opset = opsets.get(domain, 1)
        return cls(proto.op_type, domain, prefix + label, list(proto.input), outputs, attributes, opset, proto)

    @property
    def where(self) -> str:
        """How error messages name this node."""
        return f"{self.op_type} '{self.label}'"

    def get(self, name: str, default=None):
        """Attribute `name`, or `default`."""
        return self.attributes.get(name, default)

    def axis(self, rank: int, default: int) -> int:
        """Attribute ``axis``, non-negative; ModelError when a tensor of `rank` axes has no such axis."""
        axis = int(self.get("axis", default))
        if not -rank <= axis < rank:
            raise self.error(f"has axis {axis} for an input of {rank} axes", f"an axis in [{-rank}, {rank})")
        return axis % rank

    def error(self, found: str, expected: str = "", action: str = "export the model differently") -> ModelError:
        """A ModelError about this node."""
        return ModelError(self.where, found, expected, action)


def _attribute_value(attribute: onnx.AttributeProto):
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [entry.decode("utf-8", errors="replace") for entry in value]
    return value


def onnx_op(*op_types: str, domain: str = "") -> Callable:
    """Register ``handler(ctx, node, *inputs) -> value or list of values`` for `op_types`; absent inputs are None."""

    def register(handler: Callable) -> Callable:
        for op_type in op_types:
            HANDLERS[domain, op_type] = handler
        return handler

    return register

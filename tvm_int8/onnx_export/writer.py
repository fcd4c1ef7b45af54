"""The ONNX graph under construction: names, nodes and initialisers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvm_int8.errors import ModelError
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Expr, Var, const_value, dtype_of, shape_of
from tvm_int8.unique_names import UniqueNames

OPSET = 20
"""The first with Gelu. Per-channel QuantizeLinear needs 13, Pad by wrapping 19."""
IR_VERSION = 9


class OnnxWriter:
    """What the rules of `registry` write on.

    Inputs and outputs have the names of the user's model, nodes those of its layers (the first node of a layer bears
    its plain name), and tensors those of the module's variables.

    Attributes
    ----------
    flow : Dataflow
        The module being exported.
    var : Var
        The variable whose binding is being exported.
    parameters : dict of Var to tuple of str
        The names of the scale and zero point that an integer tensor was quantised with.
    """

    def __init__(self, flow: Dataflow):
        self.flow = flow
        self.var: Var = flow.params[0] if flow.params else None
        self.parameters: dict[Var, tuple[str, ...]] = {}
        self.absorbed: set[Var] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        attrs = flow.function.attrs
        self._inputs = [str(name) for name in attrs["input_names"]]
        self._outputs = [str(name) for name in attrs["output_names"]]
        self._layers = {str(name): str(layer) for name, layer in dict(attrs["layer_names"]).items()}
        self._names = UniqueNames([*self._inputs, *self._outputs])
        self._node_names = UniqueNames()
        self._tensors = dict(zip(flow.params, self._inputs, strict=True))
        for var, name in zip(flow.outputs, self._outputs, strict=True):
            self._tensors.setdefault(var, name)
        for binding in flow.bindings:
            if binding.var not in self._tensors:
                self._tensors[binding.var] = self._names.take(binding.var.name)

    @property
    def layer(self) -> str:
        """The user's name of the layer being exported."""
        return self._layers.get(self.var.name, self.var.name)

    def begin(self, var: Var) -> None:
        """Export the binding of `var` next."""
        self.var = var

    def absorb(self, variables: Collection[Var]) -> None:
        """Note that what computes these variables is part of the node being written."""
        self.absorbed.update(variables)

    def tensor(self, expr: Expr, role: str = "constant") -> str:
        """The name of a variable's tensor; a constant becomes an initialiser, named after its `role`."""
        value = const_value(expr)
        return self._tensors[expr] if value is None else self.constant(value, role)

    def constant(self, array, role: str) -> str:
        """Add an initialiser and return its name."""
        name = self._names.take(f"{self.var.name}_{role}")
        self._initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def emit(
        self, op_type: str, *inputs: str | Expr | None, suffix: str = "", name: str = "", into: Var = None, **attributes
    ) -> str:
        """Add a node with one output and return that tensor's name.

        Parameters
        ----------
        inputs : str, Expr or None
            Names of tensors, or what `tensor` gives names; None for those left out.
        suffix : str
            Tells apart the tensors and nodes in front of the one that delivers the binding's value, which has none.
        name : str
            The node's name; by default the layer's.
        into : Var, optional
            Whose value the node delivers; by default that of the binding being exported.
        """
        delivered = self.var if into is None else into
        output = self._names.take(f"{self.var.name}_{suffix}") if suffix else self._tensors[delivered]
        names = [given if isinstance(given, str) else "" if given is None else self.tensor(given) for given in inputs]
        while names and not names[-1]:
            names.pop()
        label = self._node_names.take(name or (f"{self.layer}/{suffix}" if suffix else self.layer))
        self._nodes.append(helper.make_node(op_type, names, [output], label, **attributes))
        return output

    def error(self, found: str, expected: str = "", action: str = "exclude the layer from the model") -> ModelError:
        """A ModelError about the layer being exported."""
        return ModelError(f"layer '{self.layer}'", found, expected, action)

    def finish(self) -> onnx.ModelProto:
        """The model of the nodes that the outputs depend on."""
        nodes = self._live_nodes([*self._nodes, *self._copied_outputs()])
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "main",
            [_value_info(name, var) for name, var in zip(self._inputs, self.flow.params, strict=True)],
            [_value_info(name, var) for name, var in zip(self._outputs, self.flow.outputs, strict=True)],
            [tensor for name, tensor in self._initializers.items() if name in used],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tvm_int8"
        )

    def _copied_outputs(self) -> list[onnx.NodeProto]:
        """Nodes for outputs that are inputs, or the same tensor as an earlier one."""
        pairs = [(self._tensors[var], name) for var, name in zip(self.flow.outputs, self._outputs, strict=True)]
        return [
            helper.make_node("Identity", [source], [name], self._node_names.take(name))
            for source, name in pairs
            if source != name
        ]

    def _live_nodes(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        needed, live = set(self._outputs), []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                live.append(node)
                needed.update(node.input)
        return live[::-1]


def _value_info(name: str, var: Var) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(var))), list(shape_of(var))
    )

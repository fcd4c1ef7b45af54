"""Import an ONNX graph into the canonical module, node by node, folding constants and shapes on the way.

Every value is known either as a NumPy array or as a Relax variable of static shape (`values`). A node whose inputs are
all arrays is evaluated at once, and so is anything that depends on shapes only: what exporters write to compute a shape
never reaches the graph. Other nodes are written by a handler of `onnx_registry`, by TVM's own converter, or from the
function body ONNX defines for the operator, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import tvm
from tvm import relax

from ..errors import ModelError, TvmInt8Error
from . import (  # noqa: F401  (imported for the handlers they register)
    onnx_activation,
    onnx_arithmetic,
    onnx_conv,
    onnx_normalization,
    onnx_pool,
    onnx_quantize,
    onnx_reduce,
    onnx_resize,
    onnx_shape,
)
from .context import ImportContext
from .messages import reason_of
from .onnx_fallback import ONNX_ONLY_AT_RUN_TIME, convert_with_tvm, has_tvm_converter, onnx_function
from .onnx_file import check_onnx, graph_inputs, opset_versions, read_onnx
from .onnx_fold import KEEPS_QUANTIZED, evaluate
from .onnx_graph import bind_attributes, needed_nodes, read_tensor
from .onnx_registry import HANDLERS, Node
from .values import IntegerValued, QuantizedConstant, Value

# In a network over 1-D signals these run on the [N, C, 1, W] form of their operands.
_ELEMENTWISE = {
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Softplus"),
    *("Mish", "Gelu", "Swish", "Abs", "Neg", "Exp", "Sqrt", "Erf", "Add", "Sub", "Mul", "Div", "Sum"),
    "BatchNormalization",
}
# Every other operator reads a constant that went through DequantizeLinear as the float constant it is.
_TAKES_QUANTIZED_WEIGHTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "Cast", *KEEPS_QUANTIZED}


def import_onnx(model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> tvm.IRModule:
    """Import an ONNX model as the canonical float (or QDQ) module.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        The model.
    input_shapes : mapping of input name to shape, optional
        Values of symbolic dimensions.

    Returns
    -------
    tvm.IRModule
        One function ``main`` with attributes ``input_names``, ``output_names`` and ``layer_names``.

    Raises
    ------
    ModelError
        The model cannot be read, is not valid, or uses what this compiler does not support.
    """
    proto, where = read_onnx(model)
    opsets = opset_versions(proto)
    functions = {(function.domain, function.name): function for function in proto.functions}
    wanted = [value.name for value in proto.graph.output]
    _reject_unknown_ops(needed_nodes(proto.graph.node, wanted), opsets, functions)
    check_onnx(proto, where)
    inputs = graph_inputs(proto, input_shapes, where)
    return OnnxImporter(opsets, functions).run(proto.graph, inputs)


def _reject_unknown_ops(nodes, opsets, functions) -> None:
    for proto in nodes:
        node = Node.decode(proto, opsets)
        known = (
            (node.domain, node.op_type) in HANDLERS
            or (node.domain, node.op_type) in functions
            or onnx.defs.has(node.op_type, domain=node.domain)
            or has_tvm_converter(node)
        )
        if not known:
            raise unknown_op(node)


def unknown_op(node: Node) -> ModelError:
    """The error for an operator nothing here can import."""
    return ModelError(
        f"node '{node.label}'",
        f"operator {node.op_type} of domain '{node.domain or 'ai.onnx'}' (opset {node.opset}) is not supported",
        "operators of a convolutional network",
        "remove it from the exported model (pre- and postprocessing usually can run outside)",
    )


class OnnxImporter(ImportContext):
    """The state of one import; handlers call its methods to read values and to emit Relax.

    Parameters
    ----------
    opsets : dict of str to int
        Operator set version by domain.
    functions : dict of (domain, name) to onnx.FunctionProto
        The model's own functions.
    """

    def __init__(self, opsets: dict[str, int], functions: dict[tuple[str, str], onnx.FunctionProto]):
        super().__init__()
        self.opsets = opsets
        self.functions = functions

    def run(self, graph: onnx.GraphProto, inputs: Mapping[str, tuple[tuple[int, ...], str]]) -> tvm.IRModule:
        """Import `graph` with the given input shapes and dtypes."""
        env: dict[str, Value] = {}
        for name, (shape, dtype) in inputs.items():
            env[name] = self.emitter.parameter(name, shape, dtype)
        parameters = list(env.values())
        self._read_weights(graph, env)
        self.import_nodes(graph.node, [value.name for value in graph.output], env, self.opsets)
        outputs = []
        for value in graph.output:
            if value.name not in env:
                raise ModelError(f"output '{value.name}'", "no node computes it", "", "export the model again")
            outputs.append(self.expr(env[value.name]))
        return self.emitter.finish(parameters, outputs, inputs, [value.name for value in graph.output])

    def _read_weights(self, graph: onnx.GraphProto, env: dict[str, Value]) -> None:
        for tensor in graph.initializer:
            env[tensor.name] = read_tensor(tensor, f"weight '{tensor.name}'")
        for sparse in graph.sparse_initializer:
            raise ModelError(f"weight '{sparse.values.name}'", "is sparse", "dense weights", "export it densely")

    def import_nodes(self, protos, wanted: Sequence[str], env: dict[str, Value], opsets, prefix: str = "") -> None:
        """Import the nodes that the `wanted` names depend on, in order, into `env`."""
        for proto in needed_nodes(protos, wanted):
            node = Node.decode(proto, opsets, prefix)
            inputs = []
            for name in node.inputs:
                if name and name not in env:
                    raise node.error(f"input '{name}' is not defined before it is used", "a sorted graph")
                inputs.append(env[name] if name else None)
            results = self._import_node(node, inputs, env)
            for name, value in zip(node.outputs, results, strict=False):
                env[name] = value
            missing = [name for name in node.outputs[len(results) :] if name]
            if missing and self._is_used(missing, protos, wanted):
                raise node.error(f"output '{missing[0]}' is used", "only the first output to be used")

    @staticmethod
    def _is_used(names, protos, wanted) -> bool:
        return any(name in wanted or any(name in proto.input for proto in protos) for name in names)

    def _import_node(self, node: Node, inputs: list[Value | None], env) -> list[Value]:
        self.emitter.begin(node.label)
        try:
            return self._dispatch(node, inputs, env)
        except TvmInt8Error:
            raise
        except Exception as error:
            shapes = ", ".join("none" if value is None else str(list(self.shape(value))) for value in inputs)
            found = f"cannot be imported with inputs of shape {shapes} ({reason_of(error)})"
            raise node.error(found, "", "check the model with ONNX Runtime") from error

    def _dispatch(self, node: Node, inputs, env) -> list[Value]:
        key = (node.domain, node.op_type)
        if key in self.functions:
            return self._call_function(node, self.functions[key], inputs)
        if node.op_type == "If" and not node.domain:
            return self._take_branch(node, inputs, env)
        folded = evaluate(node, inputs)
        if folded is not None:
            return folded
        if node.op_type not in _TAKES_QUANTIZED_WEIGHTS:
            inputs = [value.dequantized() if isinstance(value, QuantizedConstant) else value for value in inputs]
        if key in HANDLERS:
            return _as_list(self._handle(node, inputs))
        if node.op_type in ONNX_ONLY_AT_RUN_TIME:
            raise node.error("computes a result whose shape depends on the data", "static shapes", "leave it out")
        if has_tvm_converter(node):
            return convert_with_tvm(self, node, inputs)
        function = onnx_function(self, node, inputs)
        if function is None:
            raise unknown_op(node)
        return self._call_function(node, function, inputs)

    def _handle(self, node: Node, inputs):
        handler = HANDLERS[node.domain, node.op_type]
        if node.op_type in _ELEMENTWISE and not node.domain and self.can_lift(inputs):
            return self.lower_to_signal(handler(self, node, *[self.lift(value) for value in inputs]))
        return handler(self, node, *inputs)

    def _call_function(self, node: Node, function: onnx.FunctionProto, inputs) -> list[Value]:
        env = dict(zip(function.input, inputs, strict=False))
        env.update(dict.fromkeys(function.input[len(inputs) :]))
        opsets = {
            **self.opsets,
            **{("" if e.domain == "ai.onnx" else e.domain): e.version for e in function.opset_import},
        }
        body = [bind_attributes(proto, node, function) for proto in function.node]
        for attribute in body:
            attribute.input[:] = ["" if name in env and env[name] is None else name for name in attribute.input]
        self.import_nodes(body, list(function.output), env, opsets, f"{node.label}/")
        return [env[name] for name in function.output]

    def _take_branch(self, node: Node, inputs, env) -> list[Value]:
        condition = bool(self.static(node, inputs[0], "condition"))
        branch = node.get("then_branch" if condition else "else_branch")
        inner = dict(env)
        self._read_weights(branch, inner)
        names = [value.name for value in branch.output]
        self.import_nodes(branch.node, names, inner, self.opsets, f"{node.label}/")
        return [inner[name] for name in names]

    def static(self, node: Node, value: Value | None, role: str) -> np.ndarray | None:
        """`value` as an array; ModelError when it is only known at run time."""
        if isinstance(value, relax.Var | IntegerValued):
            raise node.error(
                f"its {role} is computed from the data", "a value known before run time", "export with static shapes"
            )
        return value.dequantized() if isinstance(value, QuantizedConstant) else value


def _as_list(result) -> list[Value]:
    return list(result) if isinstance(result, list | tuple) else [result]

"""Operators without a handler: TVM's own ONNX converters, then the function bodies ONNX defines."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from .emitter import dtype_of, substitute
from .onnx_registry import MICROSOFT, Node

ONNX_ONLY_AT_RUN_TIME = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "Loop", "Scan", "StringSplit"}
_ASSUMED = {("RoiAlign", "mode"): "avg", ("SplitToSequence", "keepdims"): 1}
"""Of attributes that TVM's converters do not look at, or not rightly: the value that they assume."""
_MICROSOFT_CONVERTERS = {"FastGelu", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization"}


def has_tvm_converter(node: Node) -> bool:
    """Whether TVM's ONNX frontend knows the operator."""
    if node.domain == MICROSOFT:
        return node.op_type in _MICROSOFT_CONVERTERS
    return not node.domain and node.op_type in onnx_frontend._get_convert_map()


def convert_with_tvm(ctx, node: Node, inputs) -> list[relax.Var]:
    """Import a node through TVM's converter and copy what it writes into the module, under the node's name.

    Raises
    ------
    ModelError
        The converter needs a kernel of its own (the canonical module has Relax operators only), or would get the node
        wrong.
    """
    _check(ctx, node, inputs)
    module, arguments = _convert_alone(ctx, node, inputs)
    function = module["main"]
    if len(module.functions) > 1:
        raise node.error("has no Relax operator", "operators of a convolutional network", "leave it out of the model")
    replaced = dict(zip(function.params, arguments, strict=True))
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
                raise node.error("depends on the data", "static shapes", "leave it out of the model")
            value = substitute(binding.value, replaced)
            kept = isinstance(value, relax.Var | tvm.ir.GenericConst)
            replaced[binding.var] = value if kept else ctx.emit(value)
    result = replaced.get(function.body.body, function.body.body)
    if not isinstance(result.ty, relax.TupleType):
        return [result]
    return [ctx.emit(relax.TupleGetItem(result, index), f"out{index}") for index in range(len(result.ty.fields))]


def _check(ctx, node: Node, inputs) -> None:
    """Refuse what TVM's converters would import as something else, or as what cannot be run."""
    for (op_type, attribute), value in _ASSUMED.items():
        if node.op_type == op_type and node.get(attribute, value) != value:
            raise node.error(f"has {attribute} {node.get(attribute)!r}", f"{attribute} {value!r}")
    if node.op_type == "TopK" and (dtype := ctx.dtype(inputs[0])) in ("uint32", "uint64"):
        raise node.error(f"sorts {dtype}", "float32 or a signed integer type")


def _convert_alone(ctx, node: Node, inputs):
    """Run the converter in a function of its own; its parameters stand for the inputs that are variables."""
    operands, parameters, arguments = onnx_frontend.onnx_input(), [], []
    for position, value in enumerate(inputs):
        expr = None if value is None else ctx.expr(value)
        if isinstance(expr, relax.Var):
            arguments.append(expr)
            expr = relax.Var(f"x{position}", relax.TensorType(ctx.shape(expr), dtype_of(expr)))
            parameters.append(expr)
        operands.append(expr)
    attributes = onnx_frontend.ONNXGraphImporter({}, {})._parse_attr(node.proto.attribute)
    attributes["tvm_custom"] = {"name": node.label, "num_outputs": len(node.outputs)}
    converter = onnx_frontend._get_convert_map()[node.op_type].get_converter(node.opset)
    builder = relax.BlockBuilder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with builder.function("main", parameters):
            with builder.dataflow():
                result = builder.normalize(converter(builder, operands, attributes, [{}, {}]))
                output = builder.emit_output(result)
            builder.emit_func_output(output)
    return builder.get(), arguments


def onnx_function(ctx, node: Node, inputs) -> onnx.FunctionProto | None:
    """The body ONNX's specification gives for an operator in terms of simpler ones, if it gives one."""
    if not onnx.defs.has(node.op_type, domain=node.domain):
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, node.opset, node.domain)
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    types = [_type_of(ctx, value).SerializeToString() for value in inputs]
    body = schema.get_context_dependent_function(node.proto.SerializeToString(), types)
    function = onnx.FunctionProto()
    function.ParseFromString(body)
    return function


def _type_of(ctx, value) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(ctx.dtype(value)))
    return onnx.helper.make_tensor_type_proto(element, ctx.shape(value))

"""Small edits of ONNX graphs that the benchmarks and the network tests share."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter


def load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` itself, or the model stored at that path."""
    return model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the name and static shape of every true input, that is, without the initializers older files list.

    A dimension without a value, the batch of many exported models, counts as 1.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in stored
    }


def logits_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose outputs are the logits: a Softmax in front of an output is taken away.

    Quantisation error is measured there. Behind a Softmax most of it is hidden by the saturated probabilities, and
    some quantisers store the probabilities themselves in 8 bits.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    last = {node.output[0]: node for node in graph.node if node.op_type == "Softmax"}
    for output in graph.output:
        node = last.get(output.name)
        if node is not None:
            output.name = node.input[0]
            graph.node.remove(node)
    return copy


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model converted to at least `opset` (per-channel QuantizeLinear needs 13)."""
    current = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if current >= opset else version_converter.convert_version(model, opset)

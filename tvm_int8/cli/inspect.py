"""The command ``tvm-int8 inspect``: what is in a compiled library, or in an ONNX model."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np


def add_inspect(commands: Any) -> None:
    """Add ``inspect`` to the commands."""
    parser = commands.add_parser("inspect", help="show what is in a compiled library, or in an ONNX model")
    parser.add_argument("file", metavar="NET.so|MODEL.onnx")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    facts = _onnx_facts(options.file) if options.file.endswith(".onnx") else _library_facts(options.file)
    if options.json:
        print(json.dumps(facts["json"], indent=2))
    else:
        print("\n".join(facts["text"]))


def _library_facts(path: str) -> dict[str, Any]:
    from tvm_int8.report import Report
    from tvm_int8.runtime import read_metadata

    metadata = read_metadata(path)
    report = Report(metadata.layers, metadata.memory)
    macs = sum(row.macs for row in metadata.kernels)
    text = [f"input   {info}" for info in metadata.inputs] + [f"output  {info}" for info in metadata.outputs]
    text += [f"for {metadata.mcpu}: needs {' '.join(metadata.cpu_features)}"]
    text += ["compiled with " + ", ".join(f"{name} {version}" for name, version in metadata.versions.items())]
    text += [f"{len(metadata.kernels)} kernel calls, {macs / 1e9:.3f} GMAC", "", str(report)]
    return {"text": text, "json": {**metadata.to_dict(), **report.to_dict()}}


def _onnx_facts(path: str) -> dict[str, Any]:
    from tvm_int8.frontend.onnx_file import onnx_dtype, opset_versions, read_onnx

    proto, _ = read_onnx(path)
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}

    def tensor(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        shape = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]
        return {"name": value.name, "shape": shape, "dtype": onnx_dtype(kind.elem_type)}

    facts: dict[str, Any] = {
        "inputs": [tensor(value) for value in graph.input if value.name not in weights],
        "outputs": [tensor(value) for value in graph.output],
        "opset": opset_versions(proto)[""],
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "nodes": len(graph.node),
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
        "weights": sum(int(np.prod(tensor.dims)) for tensor in graph.initializer),
    }
    text = [f"input   {t['name']}: {t['dtype']}[{', '.join(map(str, t['shape']))}]" for t in facts["inputs"]]
    text += [f"output  {t['name']}: {t['dtype']}[{', '.join(map(str, t['shape']))}]" for t in facts["outputs"]]
    text += [f"opset {facts['opset']}, from {facts['producer'] or 'an unnamed exporter'}"]
    text += [f"{facts['nodes']} nodes, {facts['weights'] / 1e6:.2f} million weights"]
    text += [f"{count:6} {op}" for op, count in facts["operators"].items()]
    return {"text": text, "json": facts}

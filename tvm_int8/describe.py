"""What a compiled network says of itself: the metadata made from the modules before and after lowering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm

from tvm_int8.code_generation import ALIGNMENT
from tvm_int8.metadata import KernelRow, LayerRow, Memory, Metadata, TensorInfo
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import dtype_of, shape_of
from tvm_int8.target import ResolvedTarget

#: How a kernel's kind is called in the report, by the class of its spec.
OPS = {
    "Conv2d": "conv2d",
    "WinogradConv2d": "conv2d",
    "Pool2d": "pool2d",
    "Lrn": "lrn",
    "Elementwise": "elementwise",
    "ChannelGather": "concat",
    "Resize2d": "resize2d",
    "DepthToSpace": "depth_to_space",
    "ChannelsLast": "transpose",
    "Window2d": "pad",
}


def describe(
    mod: tvm.IRModule,
    rows: list[dict],
    resolved: ResolvedTarget,
    num_threads: int | None,
    reasons: Mapping[str, str],
    sqnr: list[float | None] | None = None,
    quantization: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Metadata:
    """Metadata of a compiled network.

    Parameters
    ----------
    mod : IRModule
        The canonical module, for inputs and outputs.
    rows : list of dict
        One per kernel call, from `build.kernel_rows`.
    reasons : dict
        layer -> why it is in FP32; "*" for all others.
    sqnr : list of float or None
        One per row.
    """
    flow = Dataflow(mod)
    attrs = mod["main"].attrs
    sqnr = sqnr or [None] * len(rows)
    return Metadata(
        inputs=tuple(_info(name, var) for name, var in zip(attrs["input_names"], flow.params, strict=True)),
        outputs=tuple(_info(name, var) for name, var in zip(attrs["output_names"], flow.outputs, strict=True)),
        target=str(resolved.tvm_target),
        mcpu=resolved.mcpu,
        cpu_features=tuple(resolved.features),
        num_threads=num_threads,
        layers=tuple(_layer(row, reasons, db) for row, db in zip(rows, sqnr, strict=True)),
        kernels=tuple(KernelRow(r["function"], r["layer"], r["kernel"], r["macs"], r["bytes"]) for r in rows),
        quantization=dict(quantization or {}),
        memory=memory,
        input_alignment=ALIGNMENT,
    )


def _info(name: str, var) -> TensorInfo:
    return TensorInfo(str(name), shape_of(var), dtype_of(var))


def _layer(row: dict, reasons: Mapping[str, str], db: float | None) -> LayerRow:
    op = OPS.get(row["op"], row["op"])
    if row["op"] == "Conv2d":
        op = row["kernel"].split("_u8s8")[0].split("_f32")[0]
    reason = row["note"]
    if row["precision"] != "int8":
        layer = row["layer"]
        reason = reasons.get(layer) or reasons.get("*") or "converts between float and integers, or changes the layout"
    return LayerRow(row["layer"], op, row["precision"], row["kernel"], row["origin"], db, reason, row["weight_bits"])

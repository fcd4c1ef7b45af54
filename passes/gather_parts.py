"""What a gather of channels does to whole blocks of sixteen: which stay together, which are mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tvm_int8.specs import LANES, NOTHING, ChannelGather


@dataclass(frozen=True)
class Part:
    """Blocks [begin, end) of a gather's result: blocks of inputs[tensor] from `source` on, or a mixture (None)."""

    begin: int
    end: int
    tensor: int | None = None
    source: int = 0


def parts_of(spec: ChannelGather) -> list[Part]:
    """The result's blocks, joined where they continue each other."""
    parts: list[Part] = []
    for begin in range(0, len(spec.source), LANES):
        part = _block(spec, begin // LANES)
        if parts and part.tensor is not None and _continues(parts[-1], part):
            part = replace(parts.pop(), end=part.end)
        parts.append(part)
    return parts


def _continues(before: Part, part: Part) -> bool:
    return before.tensor == part.tensor and part.source - before.source == part.begin - before.begin


def _block(spec: ChannelGather, block: int) -> Part:
    wanted = spec.source[block * LANES : (block + 1) * LANES]
    tensor, first = wanted[0]
    in_order = all(item == (tensor, first + lane) for lane, item in enumerate(wanted))
    if wanted[0] == NOTHING or not in_order or first % LANES or not copies(spec, tensor):
        return Part(block, block + 1)
    return Part(block, block + 1, tensor, first // LANES)


def copies(spec: ChannelGather, tensor: int) -> bool:
    """Whether what comes from an input stays as it is."""
    output = spec.output
    if output.dtype == "float32":
        return spec.scales[tensor] == 1.0 and not output.clamps
    info = np.iinfo(output.dtype)
    full = output.low + output.zero_point <= info.min and info.max <= output.high + output.zero_point
    return full and spec.scales[tensor] == 1.0 and spec.zero_points[tensor] == output.zero_point

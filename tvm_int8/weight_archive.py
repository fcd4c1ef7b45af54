"""Packed weights of a network as bytes: one compressed description of all, then their codes as they are.

    [ length ][ LZMA: fields, channels' widths, steps and lowest levels, layouts ][ codes ][ codes ] ...

Layers of the same shape mostly share a layout, which is written once.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_int8.packed_weights import Layout, PackedWeight, codes_bytes, dump, restore

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 3}]  # higher ones take ten times as long for the same
_LENGTH = struct.Struct("<Q")
BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, struct.error, lzma.LZMAError)
"""What `decode`, and `PackedWeight.expanded`, may raise on bytes that are something else."""


def encode(packed: Sequence[PackedWeight], fields: dict[str, Any] | None = None) -> bytes:
    """Write weights, and fields of JSON types with them."""
    layouts: dict[tuple, tuple[int, Layout]] = {}
    rows = []
    for weight in packed:
        index, _ = layouts.setdefault(weight.layout.key(), (len(layouts), weight.layout))
        rows.append([weight.count, len(weight.lowest), index])
    distinct = [layout for _, layout in layouts.values()]
    described = {**(fields or {}), "weights": rows, "layouts": [layout.dtype for layout in distinct]}
    channels = [
        np.concatenate([np.zeros(0, np.uint8), *(weight.widths for weight in packed)]),
        np.concatenate([np.zeros(0, np.uint8), *(weight.steps for weight in packed)]),
        np.concatenate([np.zeros(0, np.int8), *(weight.lowest for weight in packed)]),
    ]
    arrays = channels + [part for layout in distinct for part in (layout.steps, layout.symbols)]
    description = lzma.compress(dump(described, arrays), lzma.FORMAT_RAW, filters=_FILTERS)
    return b"".join([_LENGTH.pack(len(description)), description, *(weight.codes.tobytes() for weight in packed)])


def decode(archive: bytes) -> tuple[dict[str, Any], list[PackedWeight]]:
    """Read what `encode` wrote: its fields and the weights.

    Raises
    ------
    one of `BROKEN`
        The bytes are something else.
    """
    (length,) = _LENGTH.unpack_from(archive)
    offset = _LENGTH.size + length
    description = lzma.decompress(archive[_LENGTH.size : offset], lzma.FORMAT_RAW, filters=_FILTERS)
    fields, (widths, steps, lowest, *parts) = restore(description)
    if not len(widths) == len(steps) == len(lowest):
        raise ValueError(f"{len(widths)} widths, {len(steps)} steps of {len(lowest)} channels")
    layouts = [Layout(dtype, *parts[2 * i : 2 * i + 2]) for i, dtype in enumerate(fields.pop("layouts"))]
    packed, channel = [], 0
    for count, channels, index in fields.pop("weights"):
        own = slice(channel, channel + channels)
        size = codes_bytes(widths[own], count // max(channels, 1))
        codes = np.frombuffer(archive, np.uint8, size, offset)
        packed.append(PackedWeight(widths[own], steps[own], lowest[own], codes, layouts[index], count))
        offset, channel = offset + size, channel + channels
    if offset != len(archive):
        raise ValueError(f"{len(archive)} bytes instead of {offset}")
    return fields, packed


def saved_bytes(packed: Sequence[PackedWeight]) -> int:
    """How much smaller an archive is than the arrays."""
    return sum(weight.array_bytes for weight in packed) - len(encode(packed))

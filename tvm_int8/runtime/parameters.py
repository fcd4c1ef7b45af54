"""A virtual machine's executable with packed weights: what stands behind the code in an exported library.

    [ executable without the weights ][ archive: packed weights, and where they were ][ footer ]

An executable, TVM's own format, is taken as opaque bytes with holes, so what is put together when a library is loaded
is what was exported, byte for byte; a checksum says so before TVM reads it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from tvm_int8.packed_weights import PackedWeight
from tvm_int8.weight_archive import BROKEN, decode, encode

_MAGIC = b"tvm_int8 weights"
FOOTER = struct.Struct(f"<QQ{len(_MAGIC)}s")
"""Bytes of the executable without weights, bytes of the archive, and the magic."""


def separated(executable: bytes, packed: Sequence[PackedWeight]) -> bytes:
    """The bytes of an executable, packed weights apart; a weight that is not in it is left out."""
    rest, kept, gaps, position = [], [], [], 0
    for start, weight in _holes(executable, packed):
        rest.append(executable[position:start])
        gaps.append(start - position)
        kept.append(weight)
        position = start + weight.array_bytes
    text = b"".join([*rest, executable[position:]])
    archive = encode(kept, {"gaps": gaps, "crc": zlib.crc32(executable)})
    return b"".join([text, archive, FOOTER.pack(len(text), len(archive), _MAGIC)])


def section_bytes(footer: bytes) -> int:
    """How long a section is that ends so; 0 for the end of anything else."""
    if len(footer) != FOOTER.size or not footer.endswith(_MAGIC):
        return 0
    rest, archive, _ = FOOTER.unpack(footer)
    return rest + archive + FOOTER.size


def joined(section: bytes) -> bytes:
    """The executable that `separated` was given.

    Raises
    ------
    ValueError
        It is altered.
    """
    try:
        rest_bytes, _, _ = FOOTER.unpack(section[-FOOTER.size :])
        rest, archive = section[:rest_bytes], section[rest_bytes : -FOOTER.size]
        fields, packed = decode(archive)
        parts, position = [], 0
        for gap, weight in zip(fields["gaps"], packed, strict=True):
            parts += [rest[position : position + gap], weight.expanded().tobytes()]
            position += gap
        executable = b"".join([*parts, rest[position:]])
        expected = fields["crc"]
    except BROKEN as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if zlib.crc32(executable) != expected:
        raise ValueError("wrong checksum of the executable")
    return executable


def _holes(executable: bytes, packed: Sequence[PackedWeight]) -> list[tuple[int, PackedWeight]]:
    """Where arrays are, in order; they mostly follow one another as their kernels do."""
    found: list[tuple[int, PackedWeight]] = []
    position = 0
    for weight in packed:
        array = weight.expanded().tobytes()
        start = executable.find(array, position)
        start = executable.find(array) if start < 0 else start
        end = start + len(array)
        if start < 0 or any(start < other + own.array_bytes and other < end for other, own in found):
            continue
        found.append((start, weight))
        position = end
    return sorted(found, key=lambda hole: hole[0])

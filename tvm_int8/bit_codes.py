"""Numbers of 1 to 8 bits, one behind the other, as bytes; eight of them at a time are one 64-bit word."""

from __future__ import annotations

import numpy as np


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-count * bits // 8)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [n] below 2^bits, one behind the other, as uint8 [ceil(n * bits / 8)]; the lowest bits first.

    Examples
    --------
    >>> [f"{byte:08b}" for byte in pack_codes(np.array([1, 2, 3, 7], np.uint8), 3)]
    ['11010001', '00001110']
    """
    groups = np.pad(codes, (0, -len(codes) % 8)).reshape(-1, 8)
    words = np.zeros(len(groups), "<u8")
    for i in range(8):
        words |= groups[:, i].astype(np.uint64) << np.uint64(bits * i)
    packed = words.view(np.uint8).reshape(-1, 8)[:, :bits]
    return packed.ravel()[: packed_bytes(len(codes), bits)]


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The uint8 [count] that `pack_codes` was given.

    Raises
    ------
    ValueError
        Of other bits than 1 to 8, or another length.
    """
    if not 1 <= bits <= 8 or count < 0 or len(packed) != packed_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits in {len(packed)} bytes")
    groups = -(-count // 8)
    words = np.zeros((groups, 8), np.uint8)
    words[:, :bits] = np.pad(packed, (0, groups * bits - len(packed))).reshape(groups, bits)
    shifts = np.uint64(bits) * np.arange(8, dtype=np.uint64)
    codes = np.empty((groups, 8), np.uint8)
    for i, shift in enumerate(shifts):
        codes[:, i] = (words.view("<u8")[:, 0] >> shift) & np.uint64(2**bits - 1)
    return codes.ravel()[:count]

"""Rearranging vectors: each function here is one AVX-512 shuffle instruction, written as an LLVM `shufflevector`.

A 64-byte vector of NCHW16c bytes is four pixels; one pixel is one of the register's four 16-byte lanes.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES

from . import lanes
from .vector import intrinsic, let

LANE_BYTES = 16
PIXELS = 4  # 16-byte lanes of a 64-byte vector


def each_pixel(count: int, pixels: int, emit) -> None:
    """emit(first pixel, lanes) over `count` pixels of 16 channels, `pixels` at a time in a loop, then one by one."""
    groups = max(count, 0) // pixels
    if groups:
        with T.serial(groups) as i:
            emit(i * pixels, pixels * LANES)
    for i in range(groups * pixels, count):
        emit(i, LANES)


def shuffle(vectors: list, indices: list[int]):
    """The elements `indices` of the concatenated `vectors`."""
    return let(lanes.shuffle(vectors, indices))


def unpack(a, b, unit_bytes: int, high: bool):
    """Interleave units of 1 or 2 bytes of two uint8x64, per lane: `vpunpck{l,h}{bw,wd}`.

    Takes the low (or high) eight bytes of each lane of `a` and `b`: a0 b0 a1 b1 ...
    """
    per_lane, half = LANE_BYTES // unit_bytes, LANE_BYTES // unit_bytes // 2
    units = PIXELS * per_lane
    if unit_bytes == 2:
        a, b = T.reinterpret("uint16x32", a), T.reinterpret("uint16x32", b)
    starts = [lane * per_lane + high * half + i for lane in range(PIXELS) for i in range(half)]
    mixed = shuffle([a, b], [index for start in starts for index in (start, units + start)])
    return mixed if unit_bytes == 1 else T.reinterpret("uint8x64", mixed)


def pick_quarters(a, b, quarters: tuple[int, ...]):
    """16-byte lanes of two 64-byte vectors of any dtype, b's counted behind a's: `vshufi64x2` and relatives."""
    elements = a.ty.dtype.lanes // PIXELS
    return shuffle([a, b], [quarter * elements + i for quarter in quarters for i in range(elements)])


def every_second_pixel(a, b, first: int):
    """Pixels first, first + 2, first + 4, first + 6 of the eight in two uint8x64."""
    return pick_quarters(a, b, (first, first + 2, first + 4, first + 6))


def transpose_lanes(vectors: list) -> list:
    """4x4 transposition of the 16-byte lanes of four 64-byte vectors: lane i of result j is lane j of input i."""
    a, b, c, d = vectors
    low = pick_quarters(a, b, (0, 1, 4, 5)), pick_quarters(c, d, (0, 1, 4, 5))
    high = pick_quarters(a, b, (2, 3, 6, 7)), pick_quarters(c, d, (2, 3, 6, 7))
    return [pick_quarters(*half, quarters) for half in (low, high) for quarters in ((0, 2, 4, 6), (1, 3, 5, 7))]


def pack_int16(a, b):
    """int32x16, int32x16 -> int16x32, saturating, per lane first `a` then `b`."""
    return intrinsic("int16x32", "llvm.x86.avx512.packssdw.512", a, b)


def pack_uint8(a, b):
    """int16x32, int16x32 -> uint8x64, saturating, per lane first `a` then `b`."""
    return intrinsic("uint8x64", "llvm.x86.avx512.packuswb.512", a, b)

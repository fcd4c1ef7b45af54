"""Vector code of Winograd's transforms (`tvm_int8.winograd`): the operations they are written over, and narrowing."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script import builder as T

from tvm_int8 import winograd
from tvm_int8.specs import LANES

from .cpu import Cpu
from .lanes import half, joined, shuffle
from .vector import const, convert, f32, fma, intrinsic, let, load

PAIR = 2 * LANES
"""Lanes of an int16 vector: sixteen channels of two tiles."""
_FLIPPED = -0x7F7F7F80  # 0x80 in every byte


class Words:
    """Operations on int16x32."""

    def __init__(self, cpu: Cpu):
        self.cpu = cpu

    @staticmethod
    def add(a, b):
        return let(a + b)

    @staticmethod
    def sub(a, b):
        return let(a - b)

    def root(self, a):
        return self.multiply_high(a, const(winograd.ROOT_Q15, "int16", PAIR))

    def multiply_high(self, a, b):
        """The product of fractions of 2**15, rounded: `vpmulhrsw`."""
        if self.cpu.vector_bits == 512:
            return let(intrinsic("int16x32", "llvm.x86.avx512.pmul.hr.sw.512", a, b))
        halves = [
            intrinsic("int16x16", "llvm.x86.avx2.pmul.hr.sw", half(a, high), half(b, high)) for high in (False, True)
        ]
        return let(joined(halves))

    def narrowed(self, values: Sequence) -> list:
        """int16x32 -> uint8x32: saturated to int8, with 128 added."""
        if self.cpu.vector_bits == 512:
            pairs = [(values[i], values[min(i + 1, len(values) - 1)]) for i in range(0, len(values), 2)]
            return [value for pair in pairs for value in _narrowed_pair(*pair)][: len(values)]
        return [_narrowed_ymm(value) for value in values]


class Floats:
    """Operations on float32x16, one rounding each."""

    @staticmethod
    def add(a, b):
        return let(a + b)

    plus = add

    @staticmethod
    def sub(a, b):
        return let(a - b)

    @staticmethod
    def root(a):
        return let(_fenced_product(a, winograd.ROOT))

    @staticmethod
    def pair(x, y):
        return let(x + y), let(x - y)

    @staticmethod
    def mul(a, number):
        return let(a * f32(number))

    @staticmethod
    def fma(a, number, b):
        return let(fma(a, f32(number), b))


class Products(Floats):
    """The same where the inputs are (vector, scale)."""

    @staticmethod
    def pair(x, y):
        (value, scale), second = x, let(y[0] * y[1])
        return let(fma(value, scale, second)), let(fma(value, scale, -second))

    @staticmethod
    def plus(x, b):
        value, scale = x
        return let(fma(value, scale, b))


def _fenced_product(a, number):
    """A product that is subtracted or added next, and must have been rounded."""
    return intrinsic("float32x16", "llvm.arithmetic.fence", a * f32(number))


def larger(a, b):
    """The larger of int16x32."""
    return intrinsic("int16x32", "llvm.smax", a, b)


def magnitude(values: Sequence):
    """The largest magnitude of several int16x32."""
    high = low = values[0]
    for value in values[1:]:
        high, low = let(larger(high, value)), let(intrinsic("int16x32", "llvm.smin", low, value))
    return let(larger(high, const(0, "int16", PAIR) - low))


def peaks_of_tiles(magnitudes) -> list:
    """int32 of either tile."""
    bound = let(magnitudes)
    peaks = (intrinsic("int16", "llvm.vector.reduce.smax", half(bound, second)) for second in (False, True))
    return [T.Bind(convert(peak, "int32", 1)) for peak in peaks]


def tile_multiplier(peak):
    """`winograd.tile_multiplier` of an int32."""
    quotient = T.float32(127 << 15) / convert(T.max(peak, 1), "float32", 1)
    nearest = intrinsic("float32", "llvm.rint", quotient)
    return T.Bind(convert(T.min(nearest, T.float32(32767)), "int32", 1))


def load_pair(buffer, first, second, zero_point: int, shift: int):
    """u8 of sixteen channels at two places, as int16x32, less their zero point, shifted to the left."""
    value = convert(joined([load(buffer, first), load(buffer, second)]), "int16", PAIR)
    value = value - const(zero_point, "int16", PAIR) if zero_point else value
    return let(T.shift_left(value, const(shift, "int16", PAIR)) if shift else value)


def twice(vector):
    """int16x16 in both halves."""
    return shuffle([vector, vector], range(PAIR))


def _narrowed_pair(first, second) -> list:
    packed = T.reinterpret("int32x16", intrinsic("int8x64", "llvm.x86.avx512.packsswb.512", first, second))
    flipped = let(T.bitwise_xor(packed, T.broadcast(T.int32(_FLIPPED), 16)))
    # Quarter q holds eight bytes of `first`, then eight of `second`.
    ordered = let(shuffle([flipped], [4 * (i // 2 % 4) + 2 * (i // 8) + i % 2 for i in range(16)]))
    return [T.reinterpret(f"uint8x{PAIR}", half(ordered, high)) for high in (False, True)]


def _narrowed_ymm(value):
    packed = intrinsic("int8x32", "llvm.x86.avx2.packsswb", half(value, False), half(value, True))
    flipped = let(T.bitwise_xor(T.reinterpret("int32x8", packed), T.broadcast(T.int32(_FLIPPED), 8)))
    # Each half holds eight bytes of the first sixteen lanes, then eight of the others.
    return T.reinterpret(f"uint8x{PAIR}", shuffle([flipped], [0, 1, 4, 5, 2, 3, 6, 7]))

"""The multiply-add at the heart of a convolution, per instruction set: the instruction, and how its operands lie.

An instance offers `unit` (channels per instruction), `data_dtype` (of what it multiplies), `vector_elements` (weights
per instruction), `weight_bytes` (of one, as loaded), `temporaries` (registers for products that are yet to be added),
`pack` (last axes [16 channels, unit] -> as loaded), `load_weight`, `broadcast` (the data word of one pixel, in all
lanes) and the call itself: acc + dot(data, weight) for 16 channels.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from .cpu import Cpu
from .lanes import half, joined
from .vector import fenced, fma, intrinsic, load


class Float32:
    """One channel: fma of a broadcast float32 with 16 weights."""

    unit, data_dtype = 1, "float32"
    vector_elements, weight_bytes, temporaries = 16, 4, 0

    def pack(self, weight: np.ndarray) -> np.ndarray:
        return weight

    def load_weight(self, buffer, index):
        return T.Bind(load(buffer, index))

    def broadcast(self, buffer, index):
        return T.Bind(T.broadcast(load(buffer, index, 1), 16))

    def __call__(self, acc, data, weight):
        return fma(data, weight, acc)


class Avx512Vnni:
    """Four channels: `vpdpbusd zmm`, exact in int32.

    LLVM 22 types both multiplicands <64 x i8>; TVM's own intrinsic passes <16 x i32> and does not verify.
    """

    unit, data_dtype = 4, "uint8"
    vector_elements, weight_bytes, temporaries = 64, 1, 0

    def pack(self, weight: np.ndarray) -> np.ndarray:
        return weight

    def load_weight(self, buffer, index):
        return T.Bind(load(buffer, index, 64))

    def broadcast(self, buffer, index):
        word = T.reinterpret("int32", load(buffer, index, 4))
        return T.Bind(T.reinterpret("uint8x64", T.broadcast(word, 16)))

    def __call__(self, acc, data, weight):
        return intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, data, weight)


class AvxVnni(Avx512Vnni):
    """Four channels: two `vpdpbusd ymm`, exact in int32."""

    def __call__(self, acc, data, weight):
        halves = [
            intrinsic("int32x8", "llvm.x86.avx512.vpdpbusd.256", *(half(v, high) for v in (acc, data, weight)))
            for high in (False, True)
        ]
        return joined(halves)


class Avx512Pmaddwd:
    """Four channels without VNNI, exact: even and odd bytes widened to int16, two `vpmaddwd zmm`.

    `vpmaddubsw` would be one instruction less, but it saturates its int16 sums (2 x 255 x 127 > 32767).  Weights are
    stored widened.
    """

    unit, data_dtype = 4, "uint8"
    vector_elements, weight_bytes, temporaries = 64, 2, 0

    def pack(self, weight: np.ndarray) -> np.ndarray:
        wide = weight.astype(np.int16).reshape(*weight.shape[:-2], 16, 2, 2)
        return np.ascontiguousarray(np.moveaxis(wide, -1, -3))  # [..., even/odd, 16, 2]

    def load_weight(self, buffer, index):
        return T.Bind(load(buffer, index, 32)), T.Bind(load(buffer, index + 32, 32))

    def broadcast(self, buffer, index):
        word = T.reinterpret("int32", load(buffer, index, 4))
        words = T.Bind(T.broadcast(word, 16))
        even = T.reinterpret("int16x32", words & T.broadcast(T.int32(0x00FF00FF), 16))
        odd = T.reinterpret(
            "int16x32", T.shift_right(words, T.broadcast(T.int32(8), 16)) & T.broadcast(T.int32(0x00FF00FF), 16)
        )
        return T.Bind(even), T.Bind(odd)

    def __call__(self, acc, data, weight):
        for bytes_of_data, bytes_of_weight in zip(data, weight, strict=True):
            acc = acc + self._multiply(bytes_of_data, bytes_of_weight)
        return acc

    def _multiply(self, data, weight):
        return intrinsic("int32x16", "llvm.x86.avx512.pmaddw.d.512", data, weight)


class Avx2Pmaddwd(Avx512Pmaddwd):
    """The same with `vpmaddwd ymm`, twice as many."""

    def _multiply(self, data, weight):
        halves = [
            intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", half(data, high), half(weight, high))
            for high in (False, True)
        ]
        return joined(halves)


_FORMS = {"avx512vnni": Avx512Vnni, "avx512bw": Avx512Pmaddwd, "avxvnni": AvxVnni, "avx2": Avx2Pmaddwd}


def for_cpu(cpu: Cpu):
    """The u8 x s8 multiply-add of a CPU."""
    return _FORMS[cpu.dot]()


class Avx512VnniWords:
    """Two channels of int16: `vpdpwssd zmm`, exact as long as sums fit int32."""

    unit, data_dtype = 2, "int16"
    vector_elements, weight_bytes, temporaries = 32, 2, 0

    def pack(self, weight: np.ndarray) -> np.ndarray:
        return weight

    def load_weight(self, buffer, index):
        return T.Bind(load(buffer, index, 32))

    def broadcast(self, buffer, index):
        word = T.reinterpret("int32", load(buffer, index, 2))
        return T.Bind(T.reinterpret("int16x32", T.broadcast(word, 16)))

    def __call__(self, acc, data, weight):
        return intrinsic("int32x16", "llvm.x86.avx512.vpdpwssd.512", acc, data, weight)


class AvxVnniWords(Avx512VnniWords):
    """The same with two `vpdpwssd ymm`."""

    def __call__(self, acc, data, weight):
        halves = [
            intrinsic("int32x8", "llvm.x86.avx512.vpdpwssd.256", *(half(v, high) for v in (acc, data, weight)))
            for high in (False, True)
        ]
        return joined(halves)


class Avx512Words(Avx512VnniWords):
    """The same without VNNI: `vpmaddwd zmm` and an addition."""

    def __call__(self, acc, data, weight):
        return acc + intrinsic("int32x16", "llvm.x86.avx512.pmaddw.d.512", data, weight)


class Avx2Words(Avx512VnniWords):
    """The same with `vpmaddwd ymm`, twice as many."""

    def __call__(self, acc, data, weight):
        halves = [
            intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", half(data, high), half(weight, high))
            for high in (False, True)
        ]
        return acc + joined(halves)


class Avx2Widened(Avx2Words):
    """Two channels of u8 that were widened to int16 once, and s8 that are stored so.

    Widening each word where it is met takes two vectors for data and four for weights, and sixteen registers spill.
    """

    temporaries = 1

    def pack(self, weight: np.ndarray) -> np.ndarray:
        return weight.astype(np.int16)

    def __call__(self, acc, data, weight):
        """The sum, fenced: LLVM would add products of several steps first, and keep all of them in registers."""
        total = T.reinterpret("float32x16", super().__call__(acc, data, weight))
        return T.reinterpret("int32x16", fenced(total))


def direct_for_cpu(cpu: Cpu):
    """The u8 x s8 multiply-add of direct convolutions, which may copy their data first, as `data_dtype`."""
    return Avx2Widened() if cpu.dot == "avx2" else for_cpu(cpu)


_WORDS = {"avx512vnni": Avx512VnniWords, "avx512bw": Avx512Words, "avxvnni": AvxVnniWords, "avx2": Avx2Words}


def words_for_cpu(cpu: Cpu):
    """The s16 x s16 multiply-add of a CPU."""
    return _WORDS[cpu.dot]()

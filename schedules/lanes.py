"""What moves data between lanes and memory: masks, shuffles, transposes, saturating packs, and the split into tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Output, Spec

from .cpu import Cpu
from .vector import const, convert, f32, finish, intrinsic, let, maximum, minimum, store, to_int32, when

#: Below this many elements a second thread costs more (about 1 us) than it saves.
PARALLEL_ELEMENTS = 16 << 10

_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def elements(spec: Spec) -> int:
    """Elements of the output, by which work is split."""
    return math.prod(spec.result.shape)


@dataclass(frozen=True)
class Task:
    """One piece of a plane: units [begin, begin + count); `last` holds where the plane's tail belongs."""

    plane: Any
    begin: Any
    count: Any
    last: Any


@contextmanager
def tasks(planes: int, units: int, elements: int, cpu: Cpu) -> Iterator[Task]:
    """Loop over `planes` of `units` pieces each, on all threads when `elements`, the whole work, is worth it.

    Planes are cut when there are fewer than eight per thread, so that no thread idles for more than an eighth.
    """
    parallel = cpu.threads > 1 and elements >= PARALLEL_ELEMENTS
    parts = max(1, min(units, -(-8 * cpu.threads // planes))) if parallel else 1
    chunk = max(1, -(-units // parts))
    parts = max(1, -(-units // chunk))
    with (T.parallel if parallel else T.serial)(planes * parts) as task:
        if parts == 1:
            yield Task(task, 0, units, True)
        else:
            part = let(task % parts)
            begin = let(part * chunk)
            count = chunk if units % chunk == 0 else T.min(chunk, units - begin)
            yield Task(let(task // parts), begin, count, part == parts - 1)


@contextmanager
def last_part(task: Task) -> Iterator[None]:
    """The branch in which the last piece of a plane does the plane's tail."""
    if task.last is True:
        yield
    else:
        with when(task.last):
            yield


def first_lanes(count, lanes: int = LANES):
    """The mask of the first `count` lanes (all of them when count >= lanes)."""
    return T.ramp(0, 1, lanes) < T.broadcast(count, lanes)


def load_masked(buffer, index, mask, lanes: int = LANES):
    """Like `load`; lanes outside `mask` are zero and their memory is not touched."""
    dtype = str(buffer.ty.dtype)
    return T.call_llvm_intrin(
        f"{dtype}x{lanes}", "llvm.masked.load", T.address_of(buffer[index]), mask, const(0, dtype, lanes)
    )


def store_masked(buffer, index, value, mask) -> None:
    """Like `store`; memory of lanes outside `mask` is not touched."""
    T.evaluate(T.call_llvm_intrin("void", "llvm.masked.store", value, T.address_of(buffer[index]), mask))


def shuffle(vectors: Sequence, indices: Sequence[int]):
    """Lanes `indices` of the concatenated `vectors`, which must be equally long."""
    return tirx.Shuffle(list(vectors), [tirx.const(int(i), "int32") for i in indices])


def half(vector, high: bool):
    """The lower or the upper lanes of a vector."""
    count = int(str(vector.ty.dtype).rpartition("x")[2]) // 2
    return shuffle([vector], range(count * high, count * high + count))


def joined(halves: Sequence):
    """Two equally long vectors as one."""
    count = int(str(halves[0].ty.dtype).rpartition("x")[2])
    return shuffle(halves, range(2 * count))


def transpose(rows: Sequence) -> list:
    """16 vectors of 16 lanes, transposed by four perfect shuffles (64 unpack instructions)."""
    assert len(rows) == LANES
    half = LANES // 2
    for _ in range(4):
        rows = [
            let(shuffle((rows[i // 2], rows[i // 2 + half]), [j for k in range(half) for j in _pair(i, k)]))
            for i in range(LANES)
        ]
    return list(rows)


def _pair(i: int, k: int) -> tuple[int, int]:
    lane = i % 2 * (LANES // 2) + k
    return lane, lane + LANES


def saturated(output: Output) -> Output:
    """`output` with its clamp narrowed to what an integer dtype can hold."""
    if output.dtype == "float32":
        return output
    bottom, top = _RANGES[output.dtype]
    low, high = float(bottom - output.zero_point), float(top - output.zero_point)
    return replace(output, low=max(output.low, low), high=min(output.high, high))


def _saturates(output: Output) -> bool:
    """Whether saturation and the output's clamp agree: the clamped range lies within the dtype's."""
    bottom, top = _RANGES.get(output.dtype, (0, -1))
    return bottom <= output.low + output.zero_point and output.high + output.zero_point <= top


def finish_bytes(values: Sequence, output: Output, fits_int32: bool = False):
    """Four float32x16 -> 64 bytes of `output`: clamp, round, add the zero point; AVX512BW's saturating packs.

    Saturation replaces clamps that are the dtype's own ends; but as conversion turns overflow into INT_MIN, the upper
    one only where the values are known to fit (`value_range`).
    """
    assert _saturates(output)
    bottom, top = _RANGES[output.dtype]
    words = []
    for value in values:
        if output.low + output.zero_point > bottom:
            value = maximum(value, f32(output.low))
        if not fits_int32 or output.high + output.zero_point < top:
            value = minimum(value, f32(output.high))
        words.append(to_int32(value))
    halves = [intrinsic("int16x32", "llvm.x86.avx512.packssdw.512", *words[i : i + 2]) for i in (0, 2)]
    if output.zero_point:
        zero_point = const(output.zero_point, "int16", 32)
        halves = [intrinsic("int16x32", "llvm.sadd.sat", half, zero_point) for half in halves]
    name = "packuswb" if output.dtype == "uint8" else "packsswb"
    packed = intrinsic("int8x64", f"llvm.x86.avx512.{name}.512", *halves)
    # The packs work within 128-bit quarters: quarter q holds quarter q of each of the four vectors.
    ordered = shuffle([T.reinterpret("int32x16", packed)], [4 * (i % 4) + i // 4 for i in range(LANES)])
    return T.reinterpret(f"{output.dtype}x64", ordered)


def store_vectors(buffer, index, values: Sequence, output: Output, cpu: Cpu, fits_int32: bool = False) -> None:
    """Finish float32 vectors and store them one behind the other from flat `index`, 64 bytes at once if possible."""
    values = list(values)
    if cpu.vector_bits == 512 and _saturates(output):
        while len(values) >= 4:
            store(buffer, index, finish_bytes(values[:4], output, fits_int32), 64)
            values, index = values[4:], index + 4 * LANES
    for i, value in enumerate(values):
        store(buffer, index + i * LANES, finish(value, output))


def widen(value, lanes: int = LANES):
    """8-bit vector -> the int32 of its bits (zero-extended)."""
    return convert(T.reinterpret(f"uint8x{lanes}", value), "int32", lanes)

"""Weights at the width they need: what an exported library stores, and how it becomes what a kernel reads.

    array = layout(lowest[channel] + step[channel] * code)          code in 0 .. 2^bits[channel] - 1, one per weight

Kernels pad channels, repeat weights and widen them; none of that is stored, whatever the width. The layout is found by
letting the kernel pack the weights' numbers instead of their values (`Layout.of`), so it holds for every kernel. It is
stored as the steps from one number to the next: a few different ones in a pattern that repeats, which compresses to
less than a thousandth of the weights.

Width and levels are those of the integers themselves: weights that were rounded to b bits need b at most, wherever they
come from (`quantization.few_bits`, a quantised ONNX model). Output channels of different widths lie together by width,
the narrowest first, where that saves more than a byte per channel.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_int8.bit_codes import pack_codes, packed_bytes, unpack_codes

LEAST_SAVED_BYTES = 64
"""Less is not worth a description."""
_DIGIT = 7  # bits of a number that are packed as if they were an int8 weight
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Layout:
    """Which weight, by its number, lies at each position of the array that a kernel reads.

    Parameters
    ----------
    dtype : str
        The array's: ``"int8"`` or ``"int16"``.
    steps : int32 [S]
        From the number of one position to that of the next; positions of padding do not count.
    symbols : uint8 or uint16, one per position
        0 for padding, else 1 + an index of `steps`.
    """

    dtype: str
    steps: np.ndarray
    symbols: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray, pack: Callable[[np.ndarray], np.ndarray]) -> Layout | None:
        """The layout of what `pack` makes of int8 weights that have these numbers.

        None for one of too many steps, and for what is no arrangement.
        """
        numbers = numbers.astype(np.int32) + 1
        packed = [
            pack((numbers >> shift & (2**_DIGIT - 1)).astype(np.int8)).ravel()
            for shift in range(0, max(numbers.size.bit_length(), 1), _DIGIT)
        ]
        found = np.zeros(len(packed[0]), np.int32)
        for i, digits in enumerate(packed):
            found |= digits.astype(np.int32) << (_DIGIT * i)
        if found.max(initial=0) > numbers.size:
            return None
        real = found != 0
        jumps = np.diff(found[real], prepend=np.int32(0))
        steps = np.unique(jumps)
        if len(steps) >= np.iinfo(np.uint16).max:
            return None
        symbols = np.zeros(len(found), np.uint8 if len(steps) < np.iinfo(np.uint8).max else np.uint16)
        symbols[real] = 1 + np.searchsorted(steps, jumps)
        return cls(str(packed[0].dtype), steps, symbols)

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """The array a kernel reads, flat, of int8 values in the order of their numbers.

        Raises
        ------
        IndexError
            Symbols or steps lead out of the values.
        """
        steps = np.concatenate([np.zeros(1, np.int32), self.steps])
        numbers = np.cumsum(steps[self.symbols], dtype=np.int32)
        numbers[self.symbols == 0] = 0
        return np.concatenate([np.zeros(1, np.int8), values])[numbers].astype(self.dtype)

    def key(self) -> tuple:
        """What layouts that are the same have in common."""
        return self.dtype, self.steps.tobytes(), str(self.symbols.dtype), self.symbols.tobytes()


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The weights of a layer.

    Parameters
    ----------
    widths : uint8 [O]
        Bits of each output channel's codes, 1 to 8.
    steps : uint8 [O]
        From one level to the next: 2 for weights of few bits (see `quantization.few_bits`), else 1.
    lowest : int8 [O]
        The integer of each output channel's code 0.
    codes : uint8
        Channel after channel of each width, the narrowest first; the lowest bits first, a byte begun for each width.
    layout : Layout
        Of weights that are numbered in that order.
    count : int
        Weights.
    """

    widths: np.ndarray
    steps: np.ndarray
    lowest: np.ndarray
    codes: np.ndarray
    layout: Layout
    count: int

    @property
    def bits(self) -> float:
        """Of a weight: a whole number, or the average, to a hundredth, where channels differ."""
        average = float(self.widths.mean()) if len(self.widths) else 1.0
        return int(average) if average.is_integer() else round(average, 2)

    @property
    def array_bytes(self) -> int:
        """Of what the kernel reads."""
        return self.layout.symbols.size * np.dtype(self.layout.dtype).itemsize

    @classmethod
    def of(
        cls,
        weight: np.ndarray,
        groups: int,
        transposed: bool,
        pack: Callable[[np.ndarray], np.ndarray],
        layout: Layout | None = None,
    ) -> PackedWeight | None:
        """Pack a convolution's weights.

        Parameters
        ----------
        weight : int8 OIHW, IOHW when transposed
        pack : callable
            Such a weight -> the array that the kernel reads.
        layout : Layout, optional
            Of another weight that the same kernel reads.

        Returns
        -------
        PackedWeight or None
            None where it would not be smaller than the array.
        """
        numbers = np.empty(weight.size, np.int64)
        order = _by_channel(np.arange(weight.size).reshape(weight.shape), groups, transposed)
        numbers[order.ravel()] = np.arange(weight.size)
        rows = weight.ravel()[order]
        widths, steps, lowest = levels(rows)
        array = pack(weight)
        if array.nbytes - codes_bytes(widths, rows.shape[1]) < max(LEAST_SAVED_BYTES, array.nbytes // 16):
            return None
        layout = layout or Layout.of(numbers.reshape(weight.shape), pack)
        if layout is None:
            return None
        numbers = ((rows.astype(np.int16) - lowest[:, None]) // steps[:, None]).astype(np.uint8)
        codes = np.concatenate([pack_codes(numbers[widths == bits].ravel(), int(bits)) for bits in np.unique(widths)])
        packed = cls(widths, steps, lowest, codes, layout, weight.size)
        return packed if packed.expanded().tobytes() == array.tobytes() else None

    def expanded(self) -> np.ndarray:
        """The array that the kernel reads, flat.

        Raises
        ------
        ValueError, IndexError
            The parts do not fit together.
        """
        channels = len(self.lowest)
        if not len(self.widths) == len(self.steps) == channels or self.count % max(channels, 1):
            raise ValueError(f"{self.count} weights of {channels} channels")
        per_channel = self.count // max(channels, 1)
        if len(self.codes) != codes_bytes(self.widths, per_channel):
            raise ValueError(f"{self.count} codes in {len(self.codes)} bytes")
        codes, offset = np.empty((channels, per_channel), np.uint8), 0
        for bits in np.unique(self.widths):
            own = self.widths == bits
            size, count = packed_bytes(int(own.sum()) * per_channel, int(bits)), int(own.sum()) * per_channel
            codes[own] = unpack_codes(self.codes[offset : offset + size], int(bits), count).reshape(-1, per_channel)
            offset += size
        values = (self.lowest[:, None].astype(np.int16) + self.steps[:, None].astype(np.int16) * codes).astype(np.int8)
        return self.layout.arranged(values.ravel())

    def to_bytes(self) -> bytes:
        """Everything, one part behind the other."""
        fields = {"count": self.count, "dtype": self.layout.dtype}
        own = [self.widths, self.steps, self.lowest, self.codes]
        return dump(fields, [*own, self.layout.steps, self.layout.symbols])

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedWeight:
        """Read what `to_bytes` wrote."""
        fields, (widths, steps, lowest, codes, jumps, symbols) = restore(data)
        layout = Layout(fields["dtype"], jumps, symbols)
        return cls(widths, steps, lowest, codes, layout, fields["count"])


def levels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits and step, uint8 [O], and lowest level, int8 [O], of the integers int8 [O, K] of output channels.

    All the same bits and steps, unless bits of their own save a byte per channel.

    Examples
    --------
    >>> [part.tolist() for part in levels(np.array([[-3, 1, 3], [-2, 4, 0]], np.int8))]
    [[2, 2], [2, 2], [-3, -2]]
    """
    least, most = rows.min(1, initial=127).astype(np.int16), rows.max(1, initial=-128).astype(np.int16)
    odd = ((rows - rows[:, :1]) & 1).any(1)
    steps, common = np.where(odd, 1, 2), 1 if odd.any() else 2
    widths, same = _widths(most - least, steps), _widths(most - least, common).max(initial=1)
    if (same - widths).sum() * rows.shape[1] <= 8 * len(rows):
        widths, steps = np.full(len(rows), same), np.full(len(rows), common)
    lowest = np.clip(least, -128, 127)
    span, half = steps * (2**widths - 1), 2 ** np.where(steps == 2, widths, widths - 1)
    for shift, even in ((1, False), (0, False), (2, True)):  # alike deflate better
        usual = shift - half
        fits = (usual <= least) & (most <= usual + span) & ((least - usual) % steps == 0) & (even <= (steps == 2))
        lowest = np.where(fits & (usual >= -128), usual, lowest)
    return widths.astype(np.uint8), steps.astype(np.uint8), lowest.astype(np.int8)


def _widths(spans: np.ndarray, steps: np.ndarray | int) -> np.ndarray:
    """Bits of codes from 0 to spans / steps; at least 1."""
    return np.maximum(np.ceil(np.log2(np.maximum(spans, 0) // steps + 1.0)).astype(np.int64), 1)


def codes_bytes(widths: np.ndarray, per_channel: int) -> int:
    """Bytes of the codes of channels of these widths, with so many weights each."""
    found = zip(*np.unique(widths, return_counts=True), strict=True)
    return sum(packed_bytes(int(n) * per_channel, int(bits)) for bits, n in found)


def dump(fields: dict[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """Fields of JSON types and flat arrays as bytes."""
    described = {**fields, "arrays": [[str(array.dtype), array.size] for array in arrays]}
    text = json.dumps(described, separators=(",", ":")).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays)])


def restore(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read what `dump` wrote.

    Raises
    ------
    ValueError, KeyError, TypeError, struct.error
        It is something else.
    """
    (length,) = _LENGTH.unpack_from(data)
    fields = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    arrays, offset = [], _LENGTH.size + length
    for dtype, size in fields.pop("arrays"):
        if dtype not in ("int8", "uint8", "uint16", "int32") or not isinstance(size, int) or size < 0:
            raise ValueError(f"an array of {size} {dtype}")
        arrays.append(np.frombuffer(data, dtype, size, offset))
        offset += arrays[-1].nbytes
    return fields, arrays


def _by_channel(weight: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    """[O, K] of OIHW, or of IOHW whose groups follow one another."""
    if not transposed:
        return weight.reshape(len(weight), -1)
    inputs, outputs, height, width = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, height * width)
    return grouped.transpose(0, 2, 1, 3).reshape(groups * outputs, -1)

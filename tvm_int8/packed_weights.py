"""Weights at the width they need: what an exported library stores, and how it becomes what a kernel reads.

    array = layout(lowest[channel] + step * code)          code in 0 .. 2^bits - 1, one per weight of the model

Kernels pad channels, repeat weights and widen them; none of that is stored, whatever the width. The layout is found by
letting the kernel pack the weights' numbers instead of their values (`Layout.of`), so it holds for every kernel. It is
stored as the steps from one number to the next: a few different ones in a pattern that repeats, which compresses to
less than a thousandth of the weights.

Width and levels are those of the integers themselves: weights that were rounded to b bits need b at most, wherever they
come from (`quantization.few_bits`, a quantised ONNX model).
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
    bits : int
        1 to 8.
    step : int
        From one level to the next: 2 for weights of few bits (see `quantization.few_bits`), else 1.
    lowest : int8 [O]
        The integer of each output channel's code 0.
    codes : uint8 [ceil(weights * bits / 8)]
        Channel after channel, the lowest bits first.
    layout : Layout
        Of weights that are numbered in that order.
    count : int
        Weights.
    """

    bits: int
    step: int
    lowest: np.ndarray
    codes: np.ndarray
    layout: Layout
    count: int

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
        bits, step, lowest = levels(rows)
        array = pack(weight)
        if array.nbytes - packed_bytes(weight.size, bits) < max(LEAST_SAVED_BYTES, array.nbytes // 16):
            return None
        layout = layout or Layout.of(numbers.reshape(weight.shape), pack)
        if layout is None:
            return None
        codes = pack_codes(((rows.astype(np.int16) - lowest[:, None]) // step).astype(np.uint8).ravel(), bits)
        packed = cls(bits, step, lowest, codes, layout, weight.size)
        return packed if packed.expanded().tobytes() == array.tobytes() else None

    def expanded(self) -> np.ndarray:
        """The array that the kernel reads, flat.

        Raises
        ------
        ValueError, IndexError
            The parts do not fit together.
        """
        codes = unpack_codes(self.codes, self.bits, self.count).reshape(len(self.lowest), -1)
        values = (self.lowest[:, None].astype(np.int16) + np.int16(self.step) * codes).astype(np.int8)
        return self.layout.arranged(values.ravel())

    def to_bytes(self) -> bytes:
        """Everything, one part behind the other."""
        fields = {"bits": self.bits, "step": self.step, "count": self.count, "dtype": self.layout.dtype}
        return dump(fields, [self.lowest, self.codes, self.layout.steps, self.layout.symbols])

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedWeight:
        """Read what `to_bytes` wrote."""
        fields, (lowest, codes, steps, symbols) = restore(data)
        layout = Layout(fields["dtype"], steps, symbols)
        return cls(fields["bits"], fields["step"], lowest, codes, layout, fields["count"])


def levels(rows: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Bits, step and lowest level, int8 [O], of the integers int8 [O, K] of output channels.

    Examples
    --------
    >>> levels(np.array([[-3, 1, 3], [-2, 4, 0]], np.int8))
    (2, 2, array([-3, -2], dtype=int8))
    """
    least, most = rows.min(1, initial=127).astype(np.int16), rows.max(1, initial=-128).astype(np.int16)
    step = 1 if ((rows - rows[:, :1]) & 1).any() else 2
    bits = max(int((most - least).max(initial=0) // step).bit_length(), 1)
    lowest = np.clip(least, -128, 127)
    span = step * (2**bits - 1)
    for usual in (1 - 2**bits, -(2**bits), 2 - 2**bits) if step == 2 else (1 - 2 ** (bits - 1), -(2 ** (bits - 1))):
        fits = (usual <= least) & (most <= usual + span) & ((least - usual) % step == 0)  # alike deflate better
        lowest = np.where(fits, usual, lowest)
    return bits, step, lowest.astype(np.int8)


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

"""Tensors that share memory: which of them lie in one piece, and where in it.

A piece is as large as what lies in it.  Some of its tensors are *written*, by one kernel each, the others are made of
these.  Written tensors of one piece never overlap, so every byte is written once, whatever the order of the kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .expressions import Var


@dataclass(eq=False)
class Piece:
    """Memory in one piece.

    offsets : where each tensor begins, in bytes; any of them can be the lowest
    written : begin and end of the tensors that kernels write
    """

    offsets: dict[Var, int] = field(default_factory=dict)
    written: list[tuple[int, int]] = field(default_factory=list)

    def is_free(self, begin: int, end: int) -> bool:
        """Whether no kernel writes to [begin, end)."""
        return all(end <= low or high <= begin for low, high in self.written)

    def has_room_for(self, other: Piece, shift: int) -> bool:
        """Whether another piece, moved by `shift` bytes, fits between what is written here."""
        return all(self.is_free(low + shift, high + shift) for low, high in other.written)


class SharedMemory:
    """The piece of every tensor."""

    def __init__(self) -> None:
        self._pieces: dict[Var, Piece] = {}

    def __contains__(self, var) -> bool:
        return var in self._pieces

    def piece(self, var: Var) -> Piece:
        """The piece in which a tensor lies."""
        return self._pieces[var]

    def offset(self, var: Var) -> int:
        """Where in its piece a tensor begins."""
        return self._pieces[var].offsets[var]

    def pieces(self) -> Iterable[Piece]:
        """All pieces, in the order of their first tensors."""
        return dict.fromkeys(self._pieces.values())

    def write(self, var: Var, size: int) -> None:
        """A kernel writes `var`, in a piece of its own."""
        self._pieces[var] = Piece({var: 0}, [(0, size)])

    def overlay(self, var: Var, inputs: Iterable[Var], offsets: Iterable[int]) -> None:
        """`var` has the memory of `inputs`, each of which begins so many bytes behind it."""
        piece = Piece({var: 0})
        self._pieces[var] = piece
        for other, offset in zip(inputs, offsets, strict=True):
            self._join(var, other, offset)

    def _join(self, var: Var, other: Var, offset: int) -> None:
        base, joined = self._pieces[var], self._pieces[other]
        shift = base.offsets[var] + offset - joined.offsets[other]
        if base is joined:
            assert shift == 0, f"{other.name} lies somewhere else already"
            return
        if len(base.offsets) < len(joined.offsets):
            base, joined, shift = joined, base, -shift
        assert base.has_room_for(joined, shift), f"{var.name} and {other.name} overlap"
        for tensor, place in joined.offsets.items():
            base.offsets[tensor] = place + shift
            self._pieces[tensor] = base
        base.written += [(low + shift, high + shift) for low, high in joined.written]

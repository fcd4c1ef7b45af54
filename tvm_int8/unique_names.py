"""Names that no two things share."""

from __future__ import annotations

from collections.abc import Iterable


class UniqueNames:
    """Gives out names, each once.

    Parameters
    ----------
    taken : iterable of str
        Names that others have.
    """

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = set(taken)

    def take(self, name: str) -> str:
        """Return `name`, or where that is taken the first of ``name_1``, ``name_2``, ... that is not."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

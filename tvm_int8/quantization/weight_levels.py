"""The integers that weights can be: evenly spaced levels, by output channel.

    value = lowest + step * code        code in least .. most

More than `few_bits.MOST_BITS`: 0, 1 and symmetric codes. Fewer: the channel's lowest level, 2 and 0 .. 2^bits - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvm_int8.quantization.few_bits import MOST_BITS
from tvm_int8.quantization.weights import weight_limit


@dataclass(frozen=True, eq=False)
class WeightLevels:
    """Of one weight.

    Parameters
    ----------
    lowest, step, least, most : float32 [] or [O]
    """

    lowest: np.ndarray
    step: np.ndarray
    least: np.ndarray
    most: np.ndarray

    @classmethod
    def of(cls, bits: int | Sequence[int], lowest: np.ndarray | None = None) -> WeightLevels:
        """Levels of so many bits, for all output channels or each; `lowest` of those that have few.

        Examples
        --------
        >>> levels = WeightLevels.of((3, 8), np.array([-7, 0], np.int8))
        >>> levels.lowest.tolist(), levels.step.tolist(), levels.least.tolist(), levels.most.tolist()
        ([-7.0, 0.0], [2.0, 1.0], [0.0, -127.0], [7.0, 127.0])
        """
        widths = np.asarray(bits)
        few = widths <= MOST_BITS
        limit = np.array([weight_limit(int(own)) for own in widths.ravel()]).reshape(widths.shape)
        parts = (
            np.where(few, 0 if lowest is None else lowest, 0),
            np.where(few, 2, 1),
            np.where(few, 0, -limit),
            np.where(few, 2**widths - 1, limit),
        )
        return cls(*(np.asarray(part, np.float32) for part in parts))

    def spread(self, shape: Sequence[int]) -> WeightLevels:
        """The same, every array of this shape where it has one entry per channel."""
        return WeightLevels(*(a.reshape(shape) if a.ndim else a for a in self._parts))

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.lowest, self.step, self.least, self.most

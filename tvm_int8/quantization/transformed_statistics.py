"""What calibration sees of a tensor as Winograd convolutions transform it: B^T x B, position by position.

Only the largest tiles are looked at: smaller ones, and tiles of two shapes, need more products for the same noise
wherever some positions have 16 bits (see `winograd_choice`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tvm_int8 import winograd

TILE = (4, 4)
DIGITS = 3  # of a statistic, significant: a table with all of them would be mostly this
SAMPLED = 1 << 13  # tiles times channels looked at per batch, at most, unless these are fewer tiles than
FEWEST_TILES = 16


@dataclass(frozen=True, eq=False)
class TransformedStatistics:
    """Of a tensor with C channels, float64.

    Parameters
    ----------
    mean, mean_square : [C]
        Of the data as they are.
    nonzero : [C]
        Share of elements that are not exactly zero: all others cost nothing when they are rounded.
    largest : [positions, C]
        Magnitude of the transformed data.
    power : [positions, C]
        Their mean square.
    """

    mean: np.ndarray
    mean_square: np.ndarray
    nonzero: np.ndarray
    largest: np.ndarray
    power: np.ndarray

    def divided(self, divisor: np.ndarray) -> TransformedStatistics:
        """Return the statistics of the tensor with channel c divided by ``divisor[c]`` > 0."""
        square = divisor**2
        return TransformedStatistics(
            self.mean / divisor, self.mean_square / square, self.nonzero, self.largest / divisor, self.power / square
        )

    def to_dict(self) -> dict[str, list]:
        """Return lists of numbers for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformedStatistics:
        """Make statistics of what `to_dict` returned.

        Raises
        ------
        ValueError, TypeError, KeyError
            For anything else.
        """
        arrays = {field.name: np.asarray(values[field.name], np.float64) for field in fields(cls)}
        channels, positions = arrays["mean"].shape, winograd.positions(TILE)
        for name, array in arrays.items():
            if array.shape != ((positions, *channels) if name in ("largest", "power") else channels):
                raise ValueError(f"{name} of shape {list(array.shape)}")
            if not np.isfinite(array).all() or (name != "mean" and (array < 0).any()):
                raise ValueError(f"{name} with a negative or no number")
        return cls(**arrays)


class TransformedObserver:
    """Collects `TransformedStatistics` batch by batch.

    Parameters
    ----------
    paddings : sequence of (top, left, bottom, right)
        Of the convolutions that read the tensor: they decide where tiles begin.
    tile : (rows, columns) of outputs

    NaN and infinities are the business of the observer of the whole tensor, which sees the same batches first.
    """

    def __init__(self, paddings: Sequence[tuple[int, int, int, int]], tile: tuple[int, int] = TILE):
        self.paddings, self.tile = tuple(dict.fromkeys(paddings)), tile
        self._pixels = self._tiles = 0
        self._sums: dict[str, np.ndarray | float] = {"mean": 0.0, "mean_square": 0.0, "nonzero": 0.0, "power": 0.0}
        self._largest: np.ndarray | float = 0.0
        self._generator = np.random.default_rng(0)
        rows, columns = (winograd.matrices(outputs).data for outputs in tile)
        self._transform = np.kron(rows, columns).T.astype(np.float32)

    def update(self, values: np.ndarray) -> None:
        """Take in one batch, float32 [N, C, H, W]."""
        flat = values.reshape(*values.shape[:2], -1)
        self._pixels += flat.shape[0] * flat.shape[2]
        self._sums["mean"] += flat.sum((0, 2), dtype=np.float64)
        self._sums["mean_square"] += np.einsum("ncp,ncp->c", flat, flat).astype(np.float64)
        self._sums["nonzero"] += np.count_nonzero(flat, axis=(0, 2))
        for padding in self.paddings:
            tiles = self._sample(winograd.tiles_of(values, self.tile, padding, 0))
            transformed = tiles.reshape(-1, self._transform.shape[0]) @ self._transform
            transformed = transformed.reshape(len(tiles), -1)  # [tiles, C * positions]
            self._tiles += len(tiles)
            self._sums["power"] += np.einsum("ti,ti->i", transformed, transformed).astype(np.float64)
            self._largest = np.maximum(self._largest, np.maximum(transformed.max(0), -transformed.min(0)))

    def _sample(self, tiles: np.ndarray) -> np.ndarray:
        """Some of the tiles, chosen by chance: [tiles, C, rows, columns] of [N, C, y, x, rows, columns]."""
        n, channels, height, width = tiles.shape[:4]
        wanted = max(SAMPLED // channels, FEWEST_TILES)
        if n * height * width <= wanted:
            return tiles.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels, *tiles.shape[4:])
        chosen = self._generator.choice(n * height * width, wanted, replace=False)
        image, row, column = np.unravel_index(np.sort(chosen), (n, height, width))
        return tiles[image, :, row, column]

    def statistics(self) -> TransformedStatistics:
        """Return what was seen so far, to `DIGITS` digits, as it is stored."""
        assert self._pixels, "no batch seen"
        found = {
            name: np.asarray(total) / (self._tiles if name == "power" else self._pixels)
            for name, total in self._sums.items()
        }
        positions = winograd.positions(self.tile)
        for name, array in (("power", found["power"]), ("largest", np.asarray(self._largest))):
            found[name] = array.reshape(-1, positions).T
        return TransformedStatistics(**{name: _rounded(array) for name, array in found.items()})


def _rounded(array: np.ndarray) -> np.ndarray:
    """To `DIGITS` significant digits, as short decimals."""
    return np.array([float(f"{v:.{DIGITS}g}") for v in array.ravel().tolist()]).reshape(array.shape)

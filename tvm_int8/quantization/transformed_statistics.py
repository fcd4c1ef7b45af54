"""What calibration sees of a tensor as Winograd convolutions transform it: B^T x B, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_int8 import winograd

Tile = tuple[int, int]
TILES: tuple[Tile, ...] = ((4, 4), (4, 2), (2, 2))
DIGITS = 3  # of a statistic, significant: a table with all of them would be mostly this
SAMPLED = 1 << 13  # tiles times channels looked at per batch, at most, unless these are fewer tiles than
FEWEST_TILES = 16
KEPT = 1024
"""Tiles whose reach is kept, until it is known how far the loudest reach."""
_OF_DATA = ("mean", "mean_square", "nonzero")
_OF_TILES = ("low", "high", "power")


@dataclass(frozen=True, eq=False)
class TileStatistics:
    """Of the transformed data of tiles of one shape, float64 [positions, C].

    Parameters
    ----------
    low, high : the least and the largest, zero among them
    power : their mean square
    loudness : float
        How far a tile reaches, in any of its positions, relative to the loudest tile: mean square, 0 to 1.
    """

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray
    loudness: float


@dataclass(frozen=True, eq=False)
class TransformedStatistics:
    """Of a tensor with C channels.

    Parameters
    ----------
    mean, mean_square : float64 [C]
        Of the data as they are.
    nonzero : float64 [C]
        Share of elements that are not exactly zero: all others cost nothing when they are rounded.
    tiles : dict
        (rows, columns) of outputs -> `TileStatistics`.
    """

    mean: np.ndarray
    mean_square: np.ndarray
    nonzero: np.ndarray
    tiles: Mapping[Tile, TileStatistics]

    def divided(self, divisor: np.ndarray) -> TransformedStatistics:
        """Return the statistics of the tensor with channel c divided by ``divisor[c]`` > 0."""
        square = divisor**2
        tiles = {
            tile: TileStatistics(seen.low / divisor, seen.high / divisor, seen.power / square, seen.loudness)
            for tile, seen in self.tiles.items()
        }
        return TransformedStatistics(self.mean / divisor, self.mean_square / square, self.nonzero, tiles)

    def to_dict(self) -> dict[str, Any]:
        """Return lists of numbers for JSON."""
        found: dict[str, Any] = {name: getattr(self, name).tolist() for name in _OF_DATA}
        for tile, seen in self.tiles.items():
            found[_name(tile)] = {name: getattr(seen, name).tolist() for name in _OF_TILES}
            found[_name(tile)]["loudness"] = seen.loudness
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformedStatistics:
        """Make statistics of what `to_dict` returned.

        Raises
        ------
        ValueError, TypeError, KeyError
            For anything else.
        """
        own = {name: np.asarray(values[name], np.float64) for name in _OF_DATA}
        shape = own["mean"].shape
        _check(own, shape, signed={"mean"})
        tiles = {}
        for tile in TILES:
            seen = {name: np.asarray(values[_name(tile)][name], np.float64) for name in _OF_TILES}
            _check(seen, (winograd.positions(tile), *shape), signed={"low"})
            loudness = float(values[_name(tile)]["loudness"])
            if not 0 <= loudness <= 1:
                raise ValueError(f"loudness {loudness}, which is none of 0 to 1")
            tiles[tile] = TileStatistics(**seen, loudness=loudness)
        return cls(**own, tiles=tiles)


def _name(tile: Tile) -> str:
    return "x".join(map(str, tile))


def _check(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], signed: set[str]) -> None:
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} of shape {list(array.shape)}")
        if not np.isfinite(array).all() or (name not in signed and (array < 0).any()):
            raise ValueError(f"{name} with a negative or no number")


class TransformedObserver:
    """Collects `TransformedStatistics` batch by batch.

    Parameters
    ----------
    paddings : sequence of (top, left, bottom, right)
        Of the convolutions that read the tensor: they decide where tiles begin.

    NaN and infinities are the business of the observer of the whole tensor, which sees the same batches first.
    """

    def __init__(self, paddings: Sequence[tuple[int, int, int, int]]):
        self.paddings = tuple(dict.fromkeys(paddings))
        self._pixels = 0
        self._sums: dict[str, np.ndarray | float] = dict.fromkeys(_OF_DATA, 0.0)
        self._tiles = {tile: _TileObserver(tile) for tile in TILES}

    def update(self, values: np.ndarray) -> None:
        """Take in one batch, float32 [N, C, H, W]."""
        flat = values.reshape(*values.shape[:2], -1)
        self._pixels += flat.shape[0] * flat.shape[2]
        self._sums["mean"] += flat.sum((0, 2), dtype=np.float64)
        self._sums["mean_square"] += np.einsum("ncp,ncp->c", flat, flat).astype(np.float64)
        self._sums["nonzero"] += np.count_nonzero(flat, axis=(0, 2))
        for padding in self.paddings:
            for observer in self._tiles.values():
                observer.update(values, padding)

    def statistics(self) -> TransformedStatistics:
        """Return what was seen so far, to `DIGITS` digits, as it is stored."""
        assert self._pixels, "no batch seen"
        own = {name: _rounded(np.asarray(total) / self._pixels) for name, total in self._sums.items()}
        return TransformedStatistics(**own, tiles={tile: seen.statistics() for tile, seen in self._tiles.items()})


class _TileObserver:
    """Of tiles of one shape."""

    def __init__(self, tile: Tile):
        self.tile = tile
        self._count, self._power = 0, np.zeros(())
        self._reach = np.zeros((0, winograd.positions(tile)), np.float32)  # [tiles, positions], chosen by chance
        self._low = self._high = np.zeros(())
        self._generator = np.random.default_rng(0)
        rows, columns = (winograd.matrices(outputs).data for outputs in tile)
        self._transform = np.kron(rows, columns).T.astype(np.float32)

    def update(self, values: np.ndarray, padding: tuple[int, int, int, int]) -> None:
        tiles = self._sample(winograd.tiles_of(values, self.tile, padding, 0))
        transformed = tiles.reshape(-1, self._transform.shape[0]) @ self._transform
        self._keep(np.abs(transformed).reshape(len(tiles), -1, transformed.shape[1]).max(1))
        transformed = transformed.reshape(len(tiles), -1)  # [tiles, C * positions]
        self._count += len(tiles)
        self._power = self._power + np.einsum("ti,ti->i", transformed, transformed).astype(np.float64)
        self._low = np.minimum(self._low, transformed.min(0))
        self._high = np.maximum(self._high, transformed.max(0))

    def _sample(self, tiles: np.ndarray) -> np.ndarray:
        """Some of the tiles, chosen by chance: [tiles, C, rows, columns] of [N, C, y, x, rows, columns]."""
        n, channels, height, width = tiles.shape[:4]
        wanted = max(SAMPLED // channels, FEWEST_TILES)
        if n * height * width <= wanted:
            return tiles.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels, *tiles.shape[4:])
        chosen = self._generator.choice(n * height * width, wanted, replace=False)
        image, row, column = np.unravel_index(np.sort(chosen), (n, height, width))
        return tiles[image, :, row, column]

    def _keep(self, reach: np.ndarray) -> None:
        """Of all tiles seen so far every one is kept with the same chance (Vitter 1985, algorithm R)."""
        free = KEPT - len(self._reach)
        self._reach = np.concatenate([self._reach, reach[:free]])
        seen = self._count + np.arange(free, len(reach))
        place = self._generator.integers(0, seen + 1) if len(seen) else seen
        self._reach[place[place < KEPT]] = reach[free:][place < KEPT]

    def _loudness(self) -> float:
        loudest = np.maximum(self._high, -self._low).reshape(-1, self._reach.shape[1]).max(0)
        return float(np.square((self._reach / np.maximum(loudest, 1e-30)).max(1)).mean())

    def statistics(self) -> TileStatistics:
        found = self._low, self._high, self._power / self._count
        low, high, power = (_rounded(array.reshape(-1, winograd.positions(self.tile)).T) for array in found)
        return TileStatistics(low, high, power, float(_rounded(np.array(self._loudness()))))


def _rounded(array: np.ndarray) -> np.ndarray:
    """To `DIGITS` significant digits, as short decimals."""
    return np.array([float(f"{v:.{DIGITS}g}") for v in array.ravel().tolist()]).reshape(array.shape)

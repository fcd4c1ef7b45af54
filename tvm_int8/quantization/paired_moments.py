"""What a convolution reads in a rounded network, how that goes with what it reads in the float one, and what follows.

With x what it reads rounded, y in float, and d = y - x what was lost, a weight W delivers W d less than it should. The
shift S of W that makes good what can be told from x minimises  E |W d - S x|^2 + lambda |S|^2:

    S = W E[d x'] (E[x x'] + lambda)^-1

How much a few inputs tell that does not hold for others, is measured: inputs are dealt out to `FOLDS` parts, and the
lambda is taken with which shifts by all but one part gain most on that one.

Source     ridge regression (Hoerl, Kennard 1970), lambda by cross-validation (Stone 1974).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tvm_int8.quantization.second_moments import SecondMoments, damped

DAMPINGS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Lambdas to choose from, of the mean second moment."""
FOLDS = 4


@dataclass
class _Sums:
    """Over patches: of x and d, [G, K], and of x x' and d x', [G, K, K]."""

    count: int = 0
    read: np.ndarray | float = 0.0
    lost: np.ndarray | float = 0.0
    products: np.ndarray | float = 0.0
    cross: np.ndarray | float = 0.0

    def take(self, read: np.ndarray, lost: np.ndarray) -> None:
        """Take in patches, float32 [P, G, K] each."""
        self.count += len(read)
        self.read = self.read + read.sum(0, dtype=np.float64)
        self.lost = self.lost + lost.sum(0, dtype=np.float64)
        by_read, by_lost = (np.ascontiguousarray(own.transpose(1, 2, 0)) for own in (read, lost))
        self.products = self.products + np.matmul(by_read, by_read.transpose(0, 2, 1)).astype(np.float64)
        self.cross = self.cross + np.matmul(by_lost, by_read.transpose(0, 2, 1)).astype(np.float64)

    def __add__(self, other: _Sums) -> _Sums:
        fields = ("count", "read", "lost", "products", "cross")
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in fields))

    def means(self, central: bool) -> tuple[np.ndarray, np.ndarray]:
        """E[x x'] and E[d x'], or those of deviations from the means, float64 [G, K, K]."""
        count = max(self.count, 1)
        products, cross = np.asarray(self.products) / count, np.asarray(self.cross) / count
        if central:
            read, lost = np.asarray(self.read) / count, np.asarray(self.lost) / count
            products = products - np.einsum("gk,gl->gkl", read, read)
            cross = cross - np.einsum("gk,gl->gkl", lost, read)
        return products, cross

    def shift(self, weight: np.ndarray, central: bool, damping: float) -> np.ndarray:
        """S for weights [G, O, K]."""
        pairs = zip(weight, *self.means(central), strict=True)
        return np.stack([_solved(own @ cross, damped(products, damping)) for own, products, cross in pairs])

    def gain(self, weight: np.ndarray, central: bool, shift: np.ndarray) -> float:
        """By how much E |W d|^2 falls with a shift."""
        products, cross = self.means(central)
        return float((shift * (2 * (weight @ cross) - shift @ products)).sum())


@dataclass
class PairedMoments(SecondMoments):
    """Of patches of a rounded network, and of what they lack of the float network's."""

    _parts: list[_Sums] = field(default_factory=lambda: [_Sums() for _ in range(FOLDS)])
    _seen: int = 0

    @property
    def exact_mean(self) -> np.ndarray:
        """E[y], float64 [G, K]."""
        return self.mean + np.asarray(self._all.lost) / max(self.count, 1)

    @property
    def _all(self) -> _Sums:
        return sum(self._parts, _Sums())

    def update_both(self, data: np.ndarray, exact: np.ndarray) -> None:
        """Take in what the convolution read of a batch, and what it would have without rounding, [N, C, H, W] each."""
        pixels = self.chosen(data.shape)
        read, wanted = self.patches(data, pixels), self.patches(exact, pixels)
        self.take(read)
        self._parts[self._seen % FOLDS].take(read, wanted - read)
        self._seen += 1

    def aim(self, weight: np.ndarray, central: bool) -> np.ndarray:
        """Weights [G, O, K] and the shift that brings rounded data's results nearer to the float network's, float32."""
        weight = weight.astype(np.float64)
        return (weight + self._all.shift(weight, central, self.damping(weight, central))).astype(np.float32)

    def damping(self, weight: np.ndarray, central: bool) -> float:
        """The lambda that does most on inputs it was not chosen by."""
        parts = [part for part in self._parts if part.count]
        if len(parts) < 2:
            return DAMPINGS[-1]
        rests = [sum((part for part in parts if part is not left), _Sums()) for left in parts]

        def held_out(damping: float) -> float:
            pairs = zip(parts, rests, strict=True)
            return sum(left.gain(weight, central, rest.shift(weight, central, damping)) for left, rest in pairs)

        return max(DAMPINGS, key=held_out)


def _solved(rows: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """rows @ moments^-1; none where nothing was read."""
    if moments.diagonal().mean() < np.finfo(np.float32).tiny:
        return np.zeros_like(rows)
    return np.linalg.solve(moments.astype(np.float64).T, rows.T).T

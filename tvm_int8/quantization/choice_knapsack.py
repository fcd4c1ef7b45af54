"""The multiple-choice knapsack problem, exactly: one option per item, the least value, within a limited weight.

    minimise  sum_i value_i(c_i)      subject to  sum_i weight_i(c_i) <= limit

Partial choices are extended item by item. One that weighs more than another and is worth no less is dominated, and
dropped; so is one that cannot beat the best complete choice known, by the bound of the linear relaxation: what is left
of the limit, spent on the convex hulls of the items still open, the steepest steps first. What remains are a few
thousand partial choices, for networks of a hundred layers.

Source: Kellerer, Pferschy, Pisinger, *Knapsack Problems*, Springer 2004, chapter 11; the relaxation is the Lagrangian
bound of Shoham and Gersho, *Efficient bit allocation for an arbitrary set of quantizers*, 1988.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Option = tuple[float, float]
"""Weight and value, neither negative."""
Choice = TypeVar("Choice")

_ROUNDING = 1e-9  # of sums of floats: bounds that are equal but for it


def solve(items: Sequence[Mapping[Choice, Option]], limit: float) -> list[Choice] | None:
    """Choose.

    Parameters
    ----------
    items : sequence of mappings
        Choice -> weight and value.
    limit : float

    Returns
    -------
    list or None
        A choice per item; None where no combination is light enough.

    Examples
    --------
    >>> solve([{1: (1.0, 9.0), 2: (2.0, 1.0)}, {1: (3.0, 4.0), 2: (6.0, 0.0)}], 6.0)
    [2, 1]
    """
    order = sorted(range(len(items)), key=lambda i: -max(weight for weight, _ in items[i].values()))
    hulls = [lower_hull(items[i].values()) for i in order]
    rest = [_Relaxation(hulls[k:]) for k in range(len(order) + 1)]
    if rest[0].least_weight > limit:
        return None
    best = rest[0].rounded(limit)  # of a complete choice
    weight, value = np.zeros(1), np.zeros(1)
    history = []
    for k, i in enumerate(order):
        choices = list(items[i])
        options = np.array([items[i][choice] for choice in choices])
        weights, values = weight[:, None] + options[:, 0], value[:, None] + options[:, 1]
        parents, kinds = np.divmod(np.arange(weights.size), len(choices))
        kept = _undominated(weights.ravel(), values.ravel(), limit - rest[k + 1].least_weight)
        weight, value = weights.ravel()[kept], values.ravel()[kept]
        hopeful = value + rest[k + 1].bound(limit - weight) <= best * (1 + _ROUNDING)
        kept, weight, value = kept[hopeful], weight[hopeful], value[hopeful]
        history.append((parents[kept], [choices[kind] for kind in kinds[kept]]))
    return _traced(history, order, int(value.argmin()))


def _traced(history: list, order: list[int], last: int) -> list:
    found: list[Any] = [None] * len(order)
    for i, (parents, chosen) in zip(reversed(order), reversed(history), strict=True):
        found[i], last = chosen[last], parents[last]
    return found


def _undominated(weights: np.ndarray, values: np.ndarray, limit: float) -> np.ndarray:
    """Indices of what weighs at most `limit` and is worth less than everything lighter, by weight."""
    index = np.lexsort((values, weights))
    index = index[weights[index] <= limit]
    ordered = values[index]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:-1]]))
    return index[ordered < before]


def lower_hull(options: Iterable[Option]) -> np.ndarray:
    """The lower convex hull [n, 2] of weights and values, by weight, values falling."""
    hull: list[Option] = []
    for weight, value in sorted(options):
        if hull and value >= hull[-1][1]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (weight, value)):
            hull.pop()
        hull.append((weight, value))
    return np.array(hull)


def _is_above(a: Option, b: Option, c: Option) -> bool:
    """Whether b is on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


class _Relaxation:
    """Items whose options can be mixed: the least value as a convex function of the limit."""

    def __init__(self, hulls: Sequence[np.ndarray]):
        steps = [np.diff(hull, axis=0) for hull in hulls]
        joined = np.concatenate([np.zeros((0, 2)), *steps])
        joined = joined[np.argsort(joined[:, 1] / joined[:, 0], kind="stable")]
        start = np.sum([hull[0] for hull in hulls], axis=0) if hulls else np.zeros(2)
        self.least_weight = float(start[0])
        self._path = np.concatenate([start[None], start + np.cumsum(joined, axis=0)])

    def bound(self, limit: np.ndarray) -> np.ndarray:
        """No choice within `limit` is worth less."""
        return np.interp(limit, self._path[:, 0], self._path[:, 1])

    def rounded(self, limit: float) -> float:
        """The value of a choice within `limit`: the path up to the last whole step that fits."""
        last = int(np.searchsorted(self._path[:, 0], limit, side="right")) - 1
        return float(self._path[max(last, 0), 1])

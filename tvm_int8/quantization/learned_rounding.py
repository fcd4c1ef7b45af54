"""Rounding weights for the data they meet, instead of each to its nearest integer.

A layer's error on its inputs x is  E|(Q - U) x|^2 = tr (Q - U) H (Q - U)',  with U the weights in units of their
scales, Q the integers and H = E[x x'] the second moments of what the layer reads; or their covariance, where the mean
error is taken out of the bias. Rounding to nearest minimises it only for inputs that are independent of each other;
those of a convolution are anything but. This is AdaRound's objective (Nagel et al., *Up or Down? Adaptive Rounding for
Post-Training Quantization*, 2020, arXiv:2004.10568, equation 14), a quadratic problem in integers per output channel.
Instead of relaxing it, it is solved column by column, every error made good in the columns that are still open (Frantar
et al., *GPTQ*, 2022, arXiv:2210.17323), and then improved by coordinate descent until no single weight can be moved for
the better.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from tvm_int8.quantization.second_moments import damped

SWEEPS = 2
"""Of coordinate descent, at most: few weights still move, and hardly any in a third."""
Ends = int | np.ndarray
_BLOCK = 128  # columns whose errors are passed on one by one; behind them by matrix product


def learn_rounding(weight: np.ndarray, moments: np.ndarray, limit: int = 127, least: int | None = None) -> np.ndarray:
    """Round one matrix.

    Parameters
    ----------
    weight : float [O, K]
        In units of the scales.
    moments : float [K, K]
        E[x x'] of the inputs.
    limit : int
        The largest integer.
    least : int, optional
        The least one; by default ``-limit``.

    Returns
    -------
    float32 [O, K]
        Integers within ``[least, limit]``, never worse on `moments`, damped, than rounding to nearest.
    """
    return Rounding(moments).learn(weight, -limit if least is None else least, limit)


class Rounding:
    """Rounds matrices for the same inputs: what only the moments decide is computed once.

    Parameters
    ----------
    moments : float [K, K]
        E[x x'] of the inputs.
    """

    def __init__(self, moments: np.ndarray):
        self.moments = damped(moments)

    def learn(self, weight: np.ndarray, least: Ends, most: Ends) -> np.ndarray:
        """Round a matrix [O, K] to integers within [least, most], for all rows or each: see `learn_rounding`."""
        weight, moments = np.asarray(weight, np.float32), self.moments
        least, most = (np.asarray(end, np.float32).reshape(-1) for end in (least, most))  # [1] or [O]
        nearest = np.clip(np.rint(weight), least[:, None], most[:, None])
        if moments.diagonal().mean() < np.finfo(np.float32).tiny:  # nothing was read, or too little to compute with
            return nearest
        learned = _descend(self._with_feedback(weight, least, most), weight, moments, (least, most))
        better = row_errors(learned - weight, moments) < row_errors(nearest - weight, moments)
        return np.where(better[:, None], learned, nearest)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(-self.moments.diagonal(), kind="stable")

    @cached_property
    def _factors(self) -> np.ndarray:
        """The upper Cholesky factor, float32, of the ordered moments' inverse."""
        inverse = np.linalg.inv(self.moments[np.ix_(self._order, self._order)].astype(np.float64))
        return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)

    def _with_feedback(self, weight: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Round column by column, the largest moments first; the columns behind take over what each lost."""
        order, upper = self._order, self._factors
        open_columns, rounded = np.array(weight[:, order]), np.empty_like(weight)
        for start in range(0, weight.shape[1], _BLOCK):
            block = slice(start, min(start + _BLOCK, weight.shape[1]))
            factors, columns = upper[block, block], open_columns[:, block]
            lost = np.empty_like(columns)
            for k in range(columns.shape[1]):
                integers = np.clip(np.rint(columns[:, k]), least, most)
                lost[:, k] = (columns[:, k] - integers) / factors[k, k]
                rounded[:, order[start + k]] = integers
                columns[:, k + 1 :] -= np.outer(lost[:, k], factors[k, k + 1 :])
            open_columns[:, block.stop :] -= lost @ upper[block, block.stop :]
        return rounded


def row_errors(error: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """e H e' of every row e of [O, K]."""
    return np.einsum("ok,ok->o", error @ moments, error)


def _descend(integers: np.ndarray, weight: np.ndarray, moments: np.ndarray, ends: tuple) -> np.ndarray:
    """Move single weights to where the error is least, until none moves."""
    integers, scale = np.array(integers), moments.diagonal()
    gradient = (integers - weight) @ moments
    for _ in range(SWEEPS):
        moved = False
        for start in range(0, weight.shape[1], _BLOCK):
            block = slice(start, min(start + _BLOCK, weight.shape[1]))
            own, columns, before = moments[block, block], gradient[:, block], integers[:, block].copy()
            for k in range(columns.shape[1]):
                column = integers[:, start + k]
                target = np.clip(column - np.rint(columns[:, k] / scale[start + k]), *ends)
                step = target - column
                if step.any():
                    integers[:, start + k] = target
                    columns += np.outer(step, own[k])
            change = integers[:, block] - before
            if change.any():
                moved = True
                update = change @ moments[block]
                update[:, block] = 0
                gradient += update
        if not moved:
            break
    return integers

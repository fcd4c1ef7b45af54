"""max and average pooling."""

from __future__ import annotations

import numpy as np

from .elementwise import finish


def counts(spec, axis: int) -> np.ndarray:
    """Elements that count in each output's window along one spatial axis (0: rows, 1: columns), int64 [OH] or [OW].

    Window positions inside the tensor count; those in `padding` only with `count_include_pad`; those behind it never.
    """
    size, out = spec.inputs[0].shape[2 + axis], spec.result.shape[2 + axis]
    before, after = (spec.padding[axis], spec.padding[axis + 2]) if spec.count_include_pad else (0, 0)
    position = _positions(spec, axis, out)
    return ((position >= -before) & (position < size + after)).sum(axis=1)


def _positions(spec, axis: int, out: int) -> np.ndarray:
    """[out, kernel] input coordinates of every window."""
    start = np.arange(out)[:, None] * spec.strides[axis] - spec.padding[axis]
    return start + np.arange(spec.kernel[axis]) * spec.dilation[axis]


def reciprocals(spec) -> np.ndarray:
    """float32 [OH, OW]: what "avg" multiplies a window's sum by, 1 / count rounded once."""
    count = np.multiply.outer(counts(spec, 0), counts(spec, 1))
    return np.float32(1) / np.maximum(count, 1).astype(np.float32)


def _windows(spec, data, value):
    """For each element of the window, data [N, C, OH, OW] under it; `value` outside of the tensor."""
    rows, columns = (_positions(spec, axis, spec.result.shape[2 + axis]) for axis in (0, 1))
    grow = []
    for position, size in ((rows, data.shape[2]), (columns, data.shape[3])):
        grow.append((max(0, -int(position.min())), max(0, int(position.max()) + 1 - size)))
    padded = np.pad(data, ((0, 0), (0, 0), *grow), constant_values=value)
    for y in rows.T + grow[0][0]:
        for x in columns.T + grow[1][0]:
            yield padded[:, :, y[:, None], x[None, :]]


def accumulate(spec, data) -> np.ndarray:
    """The program's operand 0, float32: maximum, or sum times reciprocal of the count, of q - zero_point."""
    integer = np.issubdtype(data.dtype, np.integer)
    data = data.astype(np.int64) - spec.zero_point if integer else data
    if spec.mode == "max":
        lowest = -spec.zero_point if integer else -np.inf
        acc = np.full((*data.shape[:2], *spec.result.shape[2:]), lowest, data.dtype)
        for window in _windows(spec, data, lowest):
            acc = np.maximum(acc, window)
        return acc.astype(np.float32)
    total = np.zeros((*data.shape[:2], *spec.result.shape[2:]), np.int64 if integer else np.float64)
    for window in _windows(spec, data, 0):
        total += window
    return total.astype(np.float32) * reciprocals(spec)


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Pooling, then the program."""
    return finish(spec, inputs[1:], constants, accumulate(spec, inputs[0]))

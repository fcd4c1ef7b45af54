"""What values a kernel's program can deliver at most: interval arithmetic over its steps, per output channel.

Where all of them fit int32, conversion cannot overflow, and saturating packs clamp for nothing.
"""

from __future__ import annotations

import numpy as np

from tvm_int8 import winograd
from tvm_int8.specs import Conv2d, Program, WinogradConv2d

from .rule import Constants

_UNKNOWN = (np.float64(-np.inf), np.float64(np.inf))
_BOUNDED = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "erf": (-1.0, 1.0)}
_SLACK = 1 + 1e-4  # for rounding errors of float32 steps
_SAFE = 2.0**31 * 0.99


def accumulator_range(spec: Conv2d, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest accumulator of every output channel, float64 [C], of u8 data."""
    weight = constants.weight
    if spec.transposed:
        grouped = weight.reshape(spec.groups, -1, *weight.shape[1:])
        weight = grouped.swapaxes(1, 2).reshape(spec.result.shape[1], -1)
    weight = weight.reshape(spec.result.shape[1], -1)
    bias = np.zeros(len(weight)) if constants.bias is None else constants.bias.astype(np.float64)
    negative, positive = (clip(weight, 0).sum(1, dtype=np.float64) for clip in (np.minimum, np.maximum))
    return bias + 255 * negative, bias + 255 * positive


def winograd_accumulator_range(spec: WinogradConv2d, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the accumulators of a Winograd convolution of u8 data, float64 [C]."""
    reached = winograd.bounds(spec.tile, -spec.pad_value, 255 - spec.pad_value) << winograd.shift(spec.tile)
    largest, wide = np.zeros(constants.output_scale.shape), list(spec.wide)
    narrow = [p for p in range(len(reached)) if p not in spec.wide]
    scaled = reached[narrow, None] * (constants.input_scale / 2.0**15) + 1
    # Rounded to a 127th of what a tile reaches.
    data = scaled + scaled.max(initial=0.0) / 250
    largest[narrow] = np.einsum("poc,pc->po", np.abs(constants.weight.astype(np.float64)), data)
    if wide:
        largest[wide] = reached[wide, None] * np.abs(constants.wide_weight.astype(np.int64)).sum(2)
    rows, columns = (np.abs(winograd.matrices(outputs).result).max(0) for outputs in spec.tile)
    total = np.outer(rows, columns).ravel() @ (largest * constants.output_scale)
    bias = np.zeros(len(total)) if constants.bias is None else constants.bias.astype(np.float64)
    return bias - total, bias + total


def fits_int32(program: Program, constants: Constants, accumulator: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether whatever the program delivers can be rounded to an int32."""
    low, high = _program_range(program, constants, accumulator)
    return bool(np.all(np.abs(accumulator) < _SAFE) and np.all(low > -_SAFE) and np.all(high < _SAFE))


def _program_range(program: Program, constants: Constants, accumulator):
    channels = iter(constants.channels)
    slots: list = []
    for operand in program.operands:
        if operand.kind == "acc":
            slots.append(accumulator)
        elif operand.kind == "channel":
            value = np.asarray(next(channels), np.float64)
            slots.append((value, value))
        elif operand.dtype in ("uint8", "int8"):
            info = np.iinfo(operand.dtype)
            slots.append((np.float64(info.min - operand.zero_point), np.float64(info.max - operand.zero_point)))
        else:
            slots.append(_UNKNOWN)
    for op, *arguments in program.steps:
        taken = [slots[int(a[1:])] if isinstance(a, str) else (np.float64(a), np.float64(a)) for a in arguments]
        low, high = _step(op, taken)
        slots.append((low - abs(low) * (_SLACK - 1), high + abs(high) * (_SLACK - 1)))
    return slots[-1]


def _step(op: str, taken):
    if op in _BOUNDED:
        return tuple(map(np.float64, _BOUNDED[op]))
    known = all(np.isfinite(end).all() for interval in taken for end in interval)
    if not known:
        return _UNKNOWN
    if op == "add":
        return taken[0][0] + taken[1][0], taken[0][1] + taken[1][1]
    if op == "sub":
        return taken[0][0] - taken[1][1], taken[0][1] - taken[1][0]
    if op == "mul":
        return _product(*taken)
    if op == "fma":
        low, high = _product(*taken[:2])
        return low + taken[2][0], high + taken[2][1]
    if op in ("max", "min"):
        choose = np.maximum if op == "max" else np.minimum
        return choose(taken[0][0], taken[1][0]), choose(taken[0][1], taken[1][1])
    if op == "neg":
        return -taken[0][1], -taken[0][0]
    if op == "prelu":
        low, high = _product((np.minimum(taken[0][0], 0), np.minimum(taken[0][1], 0)), taken[1])
        return np.minimum(low, taken[0][0]), np.maximum(high, taken[0][1])
    return _UNKNOWN


def _product(a, b):
    ends = [x * y for x in a for y in b]
    return np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends))

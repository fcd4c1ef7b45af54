"""A zero-point-padded copy of an activation, for kernels whose inner loops must not test for borders."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import Tensor

from .vector import const, load, scratch, store


def emit_padded_copy(source, tensor: Tensor, pads: tuple[int, int, int, int], pad_value):
    """Copy `source` into a scratch tensor with (top, left, bottom, right) more rows and columns of `pad_value`.

    Returns (scratch buffer, height, width).  One parallel loop over rows; 64 elements a store.
    """
    top, left, bottom, right = pads
    _, _, height, width = tensor.shape
    padded_height, padded_width = height + top + bottom, width + left + right
    planes = tensor.shape[0] * tensor.channel_blocks
    block, dtype = tensor.block, tensor.dtype
    target = scratch(planes * padded_height * padded_width * block, dtype)
    with T.parallel(planes * padded_height) as task:
        plane, row = task // padded_height, task % padded_height
        base = task * (padded_width * block)
        with T.If(T.And(row >= top, row < height + top)):
            with T.Then():
                _fill(target, base, left * block, dtype, pad_value)
                _copy(
                    target, base + left * block, source, (plane * height + row - top) * (width * block), width * block
                )
                _fill(target, base + (left + width) * block, right * block, dtype, pad_value)
            with T.Else():
                _fill(target, base, padded_width * block, dtype, pad_value)
    return target, padded_height, padded_width


def _pieces(elements: int):
    """(offset, repetitions, lanes) covering `elements` with vectors of 64, 16 and 4 lanes."""
    offset = 0
    for lanes in (64, 16, 4):
        count = (elements - offset) // lanes
        if count:
            yield offset, count, lanes
        offset += count * lanes
    assert offset == elements


def _fill(target, base, elements: int, dtype: str, value) -> None:
    for offset, count, lanes in _pieces(elements):
        with T.serial(count) as i:
            store(target, base + offset + i * lanes, const(value, dtype, lanes), lanes)


def _copy(target, base, source, source_base, elements: int) -> None:
    for offset, count, lanes in _pieces(elements):
        with T.serial(count) as i:
            store(target, base + offset + i * lanes, load(source, source_base + offset + i * lanes, lanes), lanes)

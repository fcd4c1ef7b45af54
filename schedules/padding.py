"""A zero-point-padded copy of an activation, for kernels whose inner loops must not test for borders."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import Tensor

from .lanes import shuffle
from .vector import const, convert, load, scratch, store


def emit_padded_copy(source, tensor: Tensor, pads: tuple[int, int, int, int], pad_value, dtype: str | None = None):
    """Copy `source` into a scratch tensor with (top, left, bottom, right) more rows and columns of `pad_value`.

    `dtype` is the scratch tensor's: int16 holds uint8. Returns (scratch buffer, height, width). One parallel loop over
    rows; 64 elements a store.
    """
    top, left, bottom, right = pads
    _, _, height, width = tensor.shape
    padded_height, padded_width = height + top + bottom, width + left + right
    planes = tensor.shape[0] * tensor.channel_blocks
    block, dtype = tensor.block, dtype or tensor.dtype
    target = scratch(planes * padded_height * padded_width * block, dtype)
    with T.parallel(planes * padded_height) as task:
        plane, row = task // padded_height, task % padded_height
        base = task * (padded_width * block)
        _padded_row(target, base, source, tensor, plane, row - top, (left, right), pad_value)
    return target, padded_height, padded_width


def emit_padded_rows(source, tensor: Tensor, image, rows, most: int, columns, pads: tuple[int, int, int], pad_value):
    """Copy what a task needs of an image, of all its channel blocks, into a scratch tensor of whole padded rows.

    Parameters
    ----------
    rows : (first, count)
        Of the padded image, `most` at most. Those below the image are `pad_value`.
    columns : callable
        Takes a row of the padded image; returns the first of its pixels that is needed, and the one behind the last.
    pads : (top, left, right)

    Returns (scratch buffer, most, width). Serial.
    """
    (first, count), (top, left, right) = rows, pads
    padded_width = tensor.shape[3] + left + right
    target = scratch(tensor.channel_blocks * most * padded_width * tensor.block, tensor.dtype)
    with T.serial(tensor.channel_blocks) as block, T.serial(count) as row:
        base = T.Bind((block * most + row) * (padded_width * tensor.block))
        plane = image * tensor.channel_blocks + block
        y = T.Bind(first + row)
        ends = [T.Bind(T.max(0, T.min(x - left, tensor.shape[3]))) for x in columns(y)]
        _padded_row(target, base, source, tensor, plane, T.Bind(y - top), (left, right), pad_value, ends)
    return target, most, padded_width


def _padded_row(target, base, source, tensor: Tensor, plane, row, pads: tuple[int, int], pad_value, ends=None) -> None:
    """A row of a plane with (left, right) padding; of padding alone where the plane has no such row.

    `ends` are the first pixel that is copied and the one behind the last; without them all are.
    """
    (left, right), block, dtype = pads, tensor.block, target.dtype
    _, _, height, width = tensor.shape
    with T.If(T.And(row >= 0, row < height)):
        with T.Then():
            _fill(target, base, left * block, dtype, pad_value)
            start, first = base + left * block, (plane * height + row) * (width * block)
            if ends is None:
                _copy(target, start, source, first, width * block)
            else:
                _copy_pixels(target, T.Bind(start), source, T.Bind(first), ends, block)
            _fill(target, base + (left + width) * block, right * block, dtype, pad_value)
        with T.Else():
            _fill(target, base, (left + width + right) * block, dtype, pad_value)


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
            found = load(source, source_base + offset + i * lanes, lanes)
            store(target, base + offset + i * lanes, convert(found, target.dtype, lanes), lanes)


def _copy_pixels(target, base, source, source_base, ends, block: int) -> None:
    """Those from one of a row to another, however many."""
    first, behind = ends
    count = T.Bind(behind - first)
    for start, pieces, pixels in ((first, count // 4, 4), (behind - count % 4, count % 4, 1)):
        with T.serial(pieces) as i:
            at = T.Bind((start + i * pixels) * block)
            found = load(source, source_base + at, pixels * block)
            store(target, base + at, found, pixels * block)


def emit_pixel_major_copy(data, tensor: Tensor, target_shape, before: tuple[int, int], pad_value, overhang: int):
    """Copy a map into a scratch of [n, groups, height, width, pixel] bytes, `pad_value` where the map does not reach.

    Parameters
    ----------
    target_shape : object with groups, height, width, pixel, and step
        `pixel` bytes hold `pixel` // block channel blocks of a pixel; the map's pixels are `step` apart.
    before : top, left
        Rows and columns of padding in front of the map.
    overhang : int
        Bytes behind the end that may be read.
    """
    shape, block, (top, left) = target_shape, tensor.block, before
    images, _, height, width = tensor.shape
    (step_y, step_x), blocks = shape.step, shape.pixel // block
    joined = shape.height == 1 and height > 1  # all lines as one
    lines = -(-height // step_y) if joined else shape.height
    columns = shape.width // lines if joined else shape.width
    target = scratch(images * shape.groups * shape.plane_bytes + overhang, tensor.dtype)
    with T.parallel(images * shape.groups * lines) as task:
        line, plane = task % lines, task // lines  # plane: image and group
        base = T.Bind(task * (columns * shape.pixel))
        row = T.Bind((line - top) * step_y)

        def copy_line() -> None:
            copied = min(columns - left, -(-width // step_x))
            _fill(target, base, left * shape.pixel, tensor.dtype, pad_value)
            start = base + left * shape.pixel
            if blocks == 1 and step_x == 1:
                _copy(target, start, data, ((plane * height) + row) * (width * block), copied * block)
            else:
                first = (plane * blocks * height + row) * width
                emit_interleaved(target, start, data, first, copied, (blocks, block), height * width, step_x)
            behind = columns - left - copied
            _fill(target, start + copied * shape.pixel, behind * shape.pixel, tensor.dtype, pad_value)

        if top == 0 and (lines - 1) * step_y < height:
            copy_line()
        else:
            with T.If(T.And(line >= top, row < height)):
                with T.Then():
                    copy_line()
                with T.Else():
                    _fill(target, base, columns * shape.pixel, tensor.dtype, pad_value)
    return target


def emit_interleaved(target, start, data, first, count, channels: tuple[int, int], plane: int, step: int = 1) -> None:
    """Copy pixels that lie `plane` apart in each of some channel blocks to where all channels of a pixel lie together.

    Parameters
    ----------
    start : flat index in the target
    first, step, count : the first pixel, from one pixel to the next, and how many; of the data
    channels : number of channel blocks, channels in a block
    plane : pixels from one channel block of the data to the next
    """
    blocks, block = channels
    with T.serial(count) as x:
        for b in range(blocks):
            source = (first + b * plane + x * step) * block
            store(target, start + (x * blocks + b) * block, load(data, source, block), block)


def emit_stacked_image(data, tensor: Tensor, target_shape, before: tuple[int, int], pad_value, overhang: int):
    """Copy an NHW4c image into [n, 1, lines, width, rows, 4], `pad_value` where the image does not reach.

    A line begins `target_shape.step[0]` rows of the image after the line before, and pixels of its `rows` rows lie side
    by side.  Parameters as for `emit_pixel_major_copy`; the image has at least 16 columns, and all of them are copied.
    """
    shape, (top, left) = target_shape, before
    images, _, height, width = tensor.shape
    rows, pixel, block = shape.rows, shape.pixel, tensor.block
    target = scratch(images * shape.plane_bytes + overhang, tensor.dtype)
    padding = T.reinterpret("int32x16", const(pad_value, tensor.dtype, 64))
    with T.parallel(images * shape.height) as task:
        image, line = task // shape.height, task % shape.height
        base = T.Bind(task * shape.line_bytes)
        first = T.Bind(line * shape.step[0] - top)
        start = base + left * pixel
        _fill(target, base, left * pixel, tensor.dtype, pad_value)
        _fill(target, start + width * pixel, (shape.width - left - width) * pixel, tensor.dtype, pad_value)

        def copy(column) -> None:
            words = []
            for r in range(rows):
                inside = T.And(first + r >= 0, first + r < height)
                row = T.max(0, T.min(first + r, height - 1))
                # A name of its own: inside the Select, TVM would take the condition for granted and drop the clamps.
                found = T.Bind(load(data, ((image * height + row) * width + column) * block, 64))
                words.append(T.Bind(T.Select(inside, T.reinterpret("int32x16", found), padding)))
            for j in range(rows):
                mixed = shuffle(words, [(j * 16 + t) % rows * 16 + (j * 16 + t) // rows for t in range(16)])
                store(target, start + column * pixel + j * 64, T.reinterpret(f"{tensor.dtype}x64", mixed), 64)

        with T.serial(width // 16) as x:
            copy(x * 16)
        if width % 16:
            copy(width - 16)
    return target

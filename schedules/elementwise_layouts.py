"""Element-wise kernels that change the layout: plain to packed, packed to plain, plain to images of four channels.

Algorithm: as in `elementwise`.  A tile is sixteen channels by sixteen pixels, transposed in registers.

Schedule: bytes are transposed rather than floats wherever either side has bytes (16 vectors of 16 bytes: 64 unpacks of
xmm registers), which decides whether the program runs before or after.  The last pixels of a plane go through masks;
channels past the last one are read from the last one and dropped or left as padding.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES

from .lanes import elements, first_lanes, last_part, shuffle, store_masked, tasks, transpose, widen
from .operands import Operands
from .vector import const, finish, let, load, store, when

_BYTES = ("uint8", "int8")


def _tensors_are_bytes(operands: Operands) -> bool:
    return all(o.dtype in _BYTES for o, _, _ in operands.items if o.kind == "tensor")


def _tiles(operands: Operands, spec, cpu, emit) -> None:
    """Call emit(n, block, first pixel, pixels, mask or None) for every tile of every channel block."""
    pixels, blocks = operands.pixels, operands.blocks
    with tasks(spec.result.shape[0] * blocks, pixels // LANES, elements(spec), cpu) as task:
        n, block = let(task.plane // blocks), let(task.plane % blocks)
        if pixels >= LANES:
            with T.serial(task.count) as tile:
                emit(n, block, let((task.begin + tile) * LANES), LANES, None)
        if pixels % LANES:
            with last_part(task):
                emit(n, block, pixels - pixels % LANES, pixels % LANES, first_lanes(pixels % LANES))


def pack(operands: Operands, spec, out, cpu) -> None:
    """Plain to NCHW16c."""
    blocks, channels = operands.blocks, operands.channels
    by_rows = spec.result.dtype in _BYTES and not _tensors_are_bytes(operands) and not operands.has_packed_map

    def channel_of(block, lane):
        channel = block * LANES + lane
        return channel if channels % LANES == 0 or lane < channels % LANES else T.min(channel, channels - 1)

    def emit(n, block, first, count, mask):
        plane = let((n * blocks + block) * operands.pixels + first)
        places = [let(channel_of(block, lane)) for lane in range(LANES)]
        if by_rows:
            rows = [operands.run(operands.rows(n, c, first, mask)) for c in places]
            columns = transpose([let(finish(row, spec.output)) for row in rows])
        else:
            tiles = [
                transpose([let(operands.row(buffer, n, c, first, mask)) for c in places])
                for buffer in operands.tensors()
            ]
            fixed, finite = operands.fixed_columns(n, block), operands.keep_finite(block)
            columns = []
            for i in range(count):
                values = operands.columns(fixed, n, block, first + i, [tile[i] for tile in tiles])
                columns.append(finish(finite(operands.run(values)), spec.output))
        for i in range(count):
            store(out, (plane + i) * LANES, columns[i])

    _tiles(operands, spec, cpu, emit)


def unpack(operands: Operands, spec, out, cpu) -> None:
    """NCHW16c to plain."""
    blocks, channels, pixels = operands.blocks, operands.channels, operands.pixels
    by_rows = spec.result.dtype not in _BYTES and _tensors_are_bytes(operands) and not operands.has_packed_map
    whole = channels % LANES or LANES  # channels that every block has

    def emit(n, block, first, count, mask):
        plane = let((n * blocks + block) * pixels + first)
        if by_rows:
            tiles = []
            for buffer in operands.tensors():
                columns = [let(load(buffer, (plane + min(i, count - 1)) * LANES)) for i in range(LANES)]
                tiles.append(transpose(columns))
        else:
            fixed = operands.fixed_columns(n, block)
            columns = [operands.run(operands.columns(fixed, n, block, first + i)) for i in range(count)]
            columns = [let(finish(column, spec.output)) for column in columns]
            rows = transpose([columns[min(i, count - 1)] for i in range(LANES)])

        def store_rows(lanes):
            for lane in lanes:
                channel = let(block * LANES + lane)
                if by_rows:
                    values = operands.rows(n, channel, first, mask, [tile[lane] for tile in tiles])
                    row = finish(operands.run(values), spec.output)
                else:
                    row = rows[lane]
                _store(out, (n * channels + channel) * pixels + first, row, mask)

        store_rows(range(whole))
        if whole < LANES:
            with when(block < blocks - 1):
                store_rows(range(whole, LANES))

    _tiles(operands, spec, cpu, emit)


def _store(buffer, index, value, mask, lanes: int = LANES) -> None:
    if mask is None:
        store(buffer, index, value, lanes)
    else:
        store_masked(buffer, index, value, mask)


def image(operands: Operands, spec, out, cpu) -> None:
    """Plain to NCHW4c: padding lanes hold real zero, because the first convolution reads them."""
    pixels, channels, output = operands.pixels, operands.channels, spec.output

    def emit(n, first, count, mask):
        rows = [let(finish(operands.run(operands.rows(n, c, first, mask)), output)) for c in range(channels)]
        rows += [const(output.zero_point, output.dtype)] * (4 - channels)
        start = let((n * pixels + first) * 4)
        if output.dtype in _BYTES:
            word = widen(rows[0])
            for i in range(1, 4):
                word = word | (widen(rows[i]) << const(8 * i, "int32"))
            quads = T.reinterpret(f"{output.dtype}x64", word)
            _store(out, start, quads, mask if mask is None else first_lanes(4 * count, 64), 64)
            return
        pairs = [shuffle((rows[i], rows[i + 2]), [j // 2 + j % 2 * LANES for j in range(2 * LANES)]) for i in (0, 1)]
        for part in range(-(-count // 4)):
            lanes = [part * 8 + j // 2 + j % 2 * 2 * LANES for j in range(LANES)]
            left = 4 * count - part * LANES
            _store(out, start + part * LANES, shuffle(pairs, lanes), None if left >= LANES else first_lanes(left))

    with tasks(spec.result.shape[0], pixels // LANES, elements(spec), cpu) as task:
        if pixels >= LANES:
            with T.serial(task.count) as tile:
                emit(task.plane, let((task.begin + tile) * LANES), LANES, None)
        if pixels % LANES:
            with last_part(task):
                emit(task.plane, pixels - pixels % LANES, pixels % LANES, first_lanes(pixels % LANES))

"""Pooling over the whole map: each channel block is one long reduction over its H * W pixels.

Bytes are reduced four pixels a vector: maxima as they are, sums in uint16 (two vectors of 32), widened to int32 before
they can overflow.  float32 takes four accumulators, which hides the latency of additions.  Tasks are channel blocks.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Pool2d

from .lanes import shuffle, tasks
from .vector import const, convert, let, load, maximum, store

GROUP = 4  # pixels per step
STEPS = 256  # steps after which sums of bytes leave uint16: 256 * 255 < 65536


def is_global(spec: Pool2d) -> bool:
    """Whether the only window is the map."""
    whole = spec.kernel == spec.inputs[0].shape[2:] and spec.result.shape[2:] == (1, 1) and spec.dilation == (1, 1)
    return whole and not any(spec.padding)


def emit_global(pooling) -> None:
    """The tasks of a `Pooling`."""
    spec, blocks = pooling.spec, pooling.spec.result.channel_blocks
    pixels = pooling.height * pooling.width
    reduce, dtype = _floats, "float32"
    if pooling.integer:
        reduce, dtype = (_max_bytes, "uint8") if spec.mode == "max" else (_sum_bytes, "int32")
    planes = spec.result.shape[0] * blocks
    with tasks(planes, 1, planes * pixels * LANES, pooling.cpu) as task:
        image, block = task.plane // blocks, task.plane % blocks
        per_channel = pooling.epilogue.per_channel(image, block)
        value = let(reduce(pooling, task.plane * pixels, pixels))
        pooling.finish(image, block, 0, per_channel, value, dtype, pixels)


class Register:
    """One vector that LLVM keeps in registers across a loop."""

    def __init__(self, lanes: int, dtype: str, start):
        self.lanes, self.buffer = lanes, T.alloc_buffer((lanes,), dtype, scope="global")  # on the stack
        self.set(start)

    def get(self):
        """The vector as it is now."""
        return load(self.buffer, 0, self.lanes)

    def set(self, value) -> None:
        """Replace the vector."""
        store(self.buffer, 0, value, self.lanes)


def _slices(value, lanes: int) -> list:
    """A vector of `lanes` as its parts of 16."""
    return [let(shuffle([value], range(i, i + LANES))) for i in range(0, lanes, LANES)]


def _tree(operation, values: list):
    while len(values) > 1:
        pairs = [operation(*values[i : i + 2]) for i in range(0, len(values) - 1, 2)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def _max_bytes(pooling, first, pixels: int):
    """uint8x16: maxima, four accumulators of four pixels."""
    parts = []
    lanes, unroll = GROUP * LANES, GROUP
    steps = pixels // (GROUP * unroll)
    if steps:
        registers = [Register(lanes, "uint8", const(0, "uint8", lanes)) for _ in range(unroll)]
        with T.serial(steps) as i:
            for j, register in enumerate(registers):
                pixel = first + (i * unroll + j) * GROUP
                register.set(maximum(register.get(), load(pooling.data, pixel * LANES, lanes)))
        parts = _slices(let(_tree(maximum, [register.get() for register in registers])), lanes)
    rest = [load(pooling.data, (first + i) * LANES) for i in range(steps * GROUP * unroll, pixels)]
    return _tree(maximum, parts + rest)


def _sum_bytes(pooling, first, pixels: int):
    """int32x16: sums."""
    total = Register(LANES, "int32", const(0, "int32"))
    half, steps = GROUP * LANES // 2, pixels // GROUP
    rounds = -(-steps // STEPS)
    with T.serial(rounds) as r:
        sums = [Register(half, "uint16", const(0, "uint16", half)) for _ in range(2)]
        with T.serial(steps if rounds == 1 else T.min(STEPS, steps - r * STEPS)) as i:
            for j, register in enumerate(sums):
                index = (first + (r * STEPS + i) * GROUP) * LANES + j * half
                register.set(register.get() + convert(load(pooling.data, index, half), "uint16", half))
        parts = [part for register in sums for part in _slices(let(register.get()), half)]
        total.set(total.get() + _tree(lambda a, b: a + b, [convert(part, "int32") for part in parts]))
    value = total.get()
    for i in range(steps * GROUP, pixels):
        value = value + convert(load(pooling.data, (first + i) * LANES), "int32")
    return value


def _floats(pooling, first, pixels: int):
    """float32x16: sums or maxima, four accumulators."""
    operation = pooling.reduce
    registers = [Register(LANES, "float32", const(operation.start, "float32")) for _ in range(GROUP)]
    steps = pixels // GROUP
    with T.serial(steps) as i:
        for j, register in enumerate(registers):
            register.set(operation(register.get(), load(pooling.data, (first + i * GROUP + j) * LANES)))
    for i in range(steps * GROUP, pixels):
        register = registers[i % GROUP]
        register.set(operation(register.get(), load(pooling.data, (first + i) * LANES)))
    return _tree(operation, [register.get() for register in registers])

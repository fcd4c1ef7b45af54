"""Local response normalisation across channels in NCHW16c, uint8 and float32, in and out.

Algorithm
    A vector is sixteen channels of a pixel. A window's channels are lanes of it and of the same pixel's vectors in the
    blocks before and behind, so the sum of squares is one shuffle of two neighbours (`valignd`) and one addition per
    channel of the window. Then fma, the power (roots and a division, or exp and log) and the program. Channels
    outside of the tensor, padding lanes included, are zeros.

Schedule
    Tasks are runs of pixels. Four pixels, 64 bytes of uint8, walk through the channel blocks together; values and
    squares of a block stay in registers until the next one has used them, so everything is read, converted and squared
    once. The last four pixels of a plane may overlap those before: they are computed twice, to the same values.

Evidence
    Intel Sapphire Rapids, one thread of a shared machine, November 2026, us (GB/s of input and output): windows of 5,
    power 3/4, of 96 x 110x110 in uint8 400 (5.8), in float32 430 (22); of 256 x 26x26 58 (6.0) and 47 (29). That is 13
    to 17 cycles a vector, about 7 of them for the power.

    Rejected: two square roots and a division for the power 3/4 (28 cycles a vector altogether; exp and log 44); a task
    per channel block, which reads, converts and squares everything three times.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Kernel, Lrn

from .cpu import Cpu
from .epilogue import Epilogue
from .lanes import elements, first_lanes, shuffle, store_vectors, tasks
from .programs import divide_by_power
from .rule import Constants, Rule
from .vector import KernelBuilder, Registers, f32, fenced, fma, let, load, real

PIXELS = 4


class LrnRule(Rule):
    """Any `Lrn` over NCHW16c, uint8 or float32, whose windows reach no further than the neighbouring blocks."""

    def applies(self, spec, cpu: Cpu) -> bool:
        """Whether `spec` is such a normalisation."""
        if not isinstance(spec, Lrn):
            return False
        data, after = spec.inputs[0], spec.size - 1 - spec.before
        near = 0 <= spec.before <= LANES and 0 <= after <= LANES
        return near and data.dtype in ("uint8", "float32") and data.block == spec.result.block == LANES

    def build(self, spec: Lrn, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; there are no knobs."""
        epilogue = Epilogue(spec, constants)
        tensors, channels = epilogue.tensor_parameters(), epilogue.channel_parameters()
        name = f"lrn_{'u8' if spec.inputs[0].dtype == 'uint8' else 'f32'}_{spec.size}"
        with KernelBuilder(name) as k:
            data, *rest, out = k.arguments(
                ("data", spec.inputs[0].physical_shape, spec.inputs[0].dtype),
                *tensors,
                *channels,
                ("out", spec.result.physical_shape, spec.result.dtype),
            )
            epilogue.bind(rest[: len(tensors)], rest[len(tensors) :])
            _Normalisation(spec, epilogue, data, out, cpu).emit()
        return Kernel(k.func, tuple(epilogue.channel_arrays()), k.name)


class _Normalisation:
    """Emits the kernel's loops."""

    def __init__(self, spec: Lrn, epilogue: Epilogue, data, out, cpu: Cpu):
        self.spec, self.epilogue, self.data, self.out, self.cpu = spec, epilogue, data, out, cpu
        self.images, self.channels, height, width = spec.result.shape
        self.blocks, self.pixels = spec.result.channel_blocks, height * width
        self.group = min(PIXELS, self.pixels)

    def emit(self) -> None:
        units = -(-self.pixels // self.group)
        with tasks(self.images, units, elements(self.spec), self.cpu) as task, T.serial(task.count) as unit:
            first = let(T.min((task.begin + unit) * self.group, self.pixels - self.group))
            self._walk(task.plane, first)

    def _walk(self, image, first) -> None:
        """All channels of one group of pixels; the banks hold the block to be delivered and the squares before it."""
        values, before, squares = (Registers(self.group, "float32") for _ in range(3))
        zeros = [f32(0)] * self.group
        for i, value in enumerate(self._load(image, 0, first, last=self.blocks == 1)):
            before[i], values[i], squares[i] = f32(0), value, fenced(value * value)

        def step(block, last: bool) -> None:
            following = self._load(image, block + 1, first, last)
            following_squares = [let(fenced(value * value)) for value in following]
            self._deliver(image, block, first, values, before, squares, following_squares)
            for i in range(self.group):
                before[i], values[i], squares[i] = squares[i], following[i], following_squares[i]

        full = self.blocks - 1 - bool(self.channels % LANES)  # blocks whose successor has sixteen channels
        if full > 0:
            with T.serial(full) as block:
                step(block, last=False)
        if 0 <= full < self.blocks - 1:
            step(full, last=True)
        self._deliver(image, self.blocks - 1, first, values, before, squares, zeros)

    def _load(self, image, block, first, last: bool) -> list:
        """The group's vectors of a block as float32; zeros in the padding lanes of the last block."""
        spec, loaded = self.spec, []
        start = let(((image * self.blocks + block) * self.pixels + first) * LANES)
        for i in range(self.group):
            value = real(load(self.data, start + i * LANES), spec.inputs[0].dtype, spec.zero_point)
            if last and self.channels % LANES:
                value = T.Select(first_lanes(self.channels % LANES), value, f32(0))
            loaded.append(let(value))
        return loaded

    def _deliver(self, image, block, first, values, before, squares, following) -> None:
        """Normalise one block of the group's pixels and store it."""
        spec = self.spec
        per_channel = self.epilogue.per_channel(image, block)
        pixel = let(image * self.pixels + first)
        index = let(((image * self.blocks + block) * self.pixels + first) * LANES)
        results = []
        for i in range(self.group):
            total = self._window_sum(before[i], squares[i], following[i])
            base = fma(total, f32(spec.alpha / spec.size), f32(spec.bias))
            normalised = let(divide_by_power(values[i], base, spec.beta))
            results.append(self.epilogue.run(per_channel, index + i * LANES, pixel + i, normalised))
        store_vectors(self.out, index, results, spec.output, self.cpu)

    def _window_sum(self, before, here, behind):
        """Sums over each channel's window of three neighbouring vectors."""
        before, here, behind = let(before), let(here), let(behind)
        total = None
        for distance in range(-self.spec.before, self.spec.size - self.spec.before):
            pair = (before, here) if distance < 0 else (here, behind)
            start = distance % LANES if abs(distance) < LANES else 0 if distance < 0 else LANES
            term = here if distance == 0 else shuffle(pair, range(start, start + LANES))
            total = term if total is None else total + term
        return total

"""Concatenation, split, slice and shuffle of channels, with or without a change of scale.

Algorithm: out[c] = in[source[c]], requantised as rint((q - zero_point) * scale) + output.zero_point unless scale and
zero point are the output's already.

Schedule: consecutive output blocks whose sixteen channels come from the same places relative to them form a run, one
branch of one parallel loop.  Aligned runs copy 64 bytes at a time; others combine the source blocks, four pixels at a
time, with one byte shuffle per further source.  Lanes of different scales take their scale from a vector.

Rejected: one parallel loop per run costs a microsecond each; moving single bytes costs sixteen times a shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, NOTHING, ChannelGather, Kernel, Output, Spec

from .cpu import Cpu
from .lanes import elements, first_lanes, last_part, load_masked, saturated, shuffle, store_masked, store_vectors, tasks
from .rule import Constants, Rule
from .vector import KernelBuilder, const, f32, finish, let, load, real, store, when


class ChannelGatherRule(Rule):
    """Delivers gathers between tensors of one dtype and one block (0 or 16)."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Channel gathers whose tensors differ in their channels only."""
        return isinstance(spec, ChannelGather) and all(
            t.dtype == spec.result.dtype and t.block == spec.result.block in (0, LANES) for t in spec.inputs
        )

    def build(self, spec: ChannelGather, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        emitter = _Packed(spec, cpu) if spec.result.block else _Plain(spec, cpu)
        packed = tuple(emitter.constants())
        parameters = [(f"in{i}", t.physical_shape, t.dtype) for i, t in enumerate(spec.inputs)]
        parameters += [(f"table{i}", c.shape, str(c.dtype)) for i, c in enumerate(packed)]
        with KernelBuilder("channel_gather") as k:
            *buffers, out = k.arguments(*parameters, ("out", spec.result.physical_shape, spec.result.dtype))
            emitter.emit(buffers[: len(spec.inputs)], buffers[len(spec.inputs) :], out)
        return Kernel(k.func, packed, "channel_gather")


class _Gather:
    """What both layouts share: which inputs may be copied as they are, and requantisation of the others."""

    def __init__(self, spec: ChannelGather, cpu: Cpu):
        self.spec, self.cpu = spec, cpu
        self.dtype = spec.result.dtype
        self.output: Output = saturated(spec.output)
        self.pixels = spec.result.shape[2] * spec.result.shape[3]
        full = saturated(Output(self.dtype, spec.output.zero_point))
        same_range = self.output == replace(full, zero_point=self.output.zero_point)
        self.same = [
            same_range and scale == 1.0 and (self.dtype == "float32" or zero_point == self.output.zero_point)
            for scale, zero_point in zip(spec.scales, spec.zero_points, strict=True)
        ]

    def rescaled(self, vector, scale, zero_point):
        """float32 of a loaded vector in units of the output's scale; the arguments are vectors."""
        if self.dtype == "float32":
            return vector * scale
        return (real(vector, self.dtype) - zero_point) * scale


@dataclass(frozen=True)
class _Run:
    """Output blocks [begin, end) with one pattern.

    Lane i is lane picks[i][1] of source picks[i][0]; a source is (input, its block - the output's block).
    """

    begin: int
    end: int
    sources: tuple[tuple[int, int], ...]
    picks: tuple[tuple[int, int], ...]

    @property
    def aligned(self) -> bool:
        return len(self.sources) == 1 and (self.sources[0] == NOTHING or self._in_order)

    @property
    def _in_order(self) -> bool:
        return all(pick == (0, lane) for lane, pick in enumerate(self.picks))


def _runs(spec: ChannelGather) -> list[_Run]:
    runs: list[_Run] = []
    for block in range(spec.result.channel_blocks):
        wanted = spec.source[block * LANES : (block + 1) * LANES]
        found = [item if item == NOTHING else (item[0], item[1] // LANES - block) for item in wanted]
        sources = tuple(dict.fromkeys(found))
        picks = [(sources.index(item), channel % LANES) for item, (_, channel) in zip(found, wanted, strict=True)]
        picks += [(picks[-1][0], lane) for lane in range(len(picks), LANES)]  # padding: anything finite
        run = _Run(block, block + 1, sources, tuple(picks))
        if runs and (runs[-1].sources, runs[-1].picks) == (run.sources, run.picks):
            run = replace(run, begin=runs.pop().begin)
        runs.append(run)
    return runs


class _Packed(_Gather):
    """NCHW16c."""

    def constants(self) -> list[np.ndarray]:
        """Scale and zero point of every output channel, padded: for blocks whose lanes differ."""
        channels = self.spec.result.channel_blocks * LANES
        scales, zero_points = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        for c, (tensor, _) in enumerate(self.spec.source):
            if tensor >= 0:
                scales[c], zero_points[c] = self.spec.scales[tensor], self.spec.zero_points[tensor]
        return [scales, zero_points]

    def emit(self, inputs, tables, out) -> None:
        blocks = self.spec.result.channel_blocks
        runs = _runs(self.spec)
        with tasks(self.spec.result.shape[0] * blocks, self.pixels // 4, elements(self.spec), self.cpu) as task:
            n, block = let(task.plane // blocks), let(task.plane % blocks)
            for run in runs:
                if len(runs) == 1:
                    self._run(run, task, n, block, inputs, tables, out)
                else:
                    with when(tirx.all(block >= run.begin, block < run.end)):
                        self._run(run, task, n, block, inputs, tables, out)

    def _run(self, run: _Run, task, n, block, inputs, tables, out) -> None:
        starts = [
            (inputs[tensor], let((n * self.spec.inputs[tensor].channel_blocks + block + delta) * self.pixels))
            if tensor >= 0
            else (None, self._zero(run))
            for tensor, delta in run.sources
        ]
        scale = self._scale(run, block, tables)
        target = let(task.plane * self.pixels)

        def group(first, count):
            if scale is None:
                self._copy(run, starts, out, target, first, count)
            else:
                vectors = [self.rescaled(self._gather(run, starts, first + i, LANES), *scale) for i in range(count)]
                store_vectors(out, (target + first) * LANES, vectors, self.output, self.cpu)

        if self.pixels >= 4:
            with T.serial(task.count) as unit:
                group(let((task.begin + unit) * 4), 4)
        if self.pixels % 4:
            with last_part(task):
                group(self.pixels - self.pixels % 4, self.pixels % 4)

    def _zero(self, run) -> int:
        """What real zero is among the run's lanes before they are rescaled."""
        tensors = {tensor for tensor, _ in run.sources if tensor >= 0}
        if all(self.same[tensor] for tensor in tensors):
            return self.output.zero_point
        return self.spec.zero_points[tensors.pop()] if len(tensors) == 1 else 0

    def _scale(self, run, block, tables):
        """(scale, zero point) as vectors; None when all lanes are copies."""
        tensors = {tensor for tensor, _ in run.sources if tensor >= 0}
        if all(self.same[tensor] for tensor in tensors):
            return None
        if len(tensors) == 1:
            (tensor,) = tensors
            return f32(np.float32(self.spec.scales[tensor])), f32(self.spec.zero_points[tensor])
        return tuple(let(load(table, block * LANES)) for table in tables)

    def _copy(self, run, starts, out, target, first, count) -> None:
        pixels = 4 if self.dtype != "float32" and count == 4 else 1
        for i in range(0, count, pixels):
            vector = self._gather(run, starts, first + i, pixels * LANES)
            store(out, (target + first + i) * LANES, vector, pixels * LANES)

    def _gather(self, run, starts, pixel, lanes):
        """`lanes` lanes of the run's output from `pixel` on, as they are in memory."""
        vectors = [
            const(start, self.dtype, lanes) if buffer is None else load(buffer, (start + pixel) * LANES, lanes)
            for buffer, start in starts
        ]
        result = vectors[0]
        if run.aligned:
            return result
        if len(vectors) == 1:
            return let(shuffle(vectors, _indices(run.picks, 0, None, lanes)))
        for second in range(1, len(vectors)):
            result = let(shuffle([result, vectors[second]], _indices(run.picks, second - 1, second, lanes)))
        return result


def _indices(picks, first, second, lanes) -> list[int]:
    """Lanes for a shuffle of (result so far, source `second`); source 0 itself is the result before the first step."""
    indices = []
    for i in range(lanes):
        pixel, (source, lane) = i - i % LANES, picks[i % LANES]
        if source == second:
            indices.append(lanes + pixel + lane)
        elif first == 0 and source == 0:
            indices.append(pixel + lane)
        else:
            indices.append(i)
    return indices


class _Plain(_Gather):
    """NCHW: a channel is a row, found in two tables."""

    def constants(self) -> list[np.ndarray]:
        """Input and channel of every output channel."""
        return list(np.array(self.spec.source, np.int32).T.copy())

    def emit(self, inputs, tables, out) -> None:
        channels = self.spec.result.shape[1]
        with tasks(self.spec.result.shape[0] * channels, 1, elements(self.spec), self.cpu) as task:
            n, channel = let(task.plane // channels), let(task.plane % channels)
            tensor, source = (let(load(table, channel, 1)) for table in tables)
            if NOTHING in self.spec.source:
                with when(tensor < 0):
                    self._zeros(out, let(task.plane * self.pixels))
            for i, buffer in enumerate(inputs):
                with when(tensor == i):
                    start = let((n * self.spec.inputs[i].shape[1] + source) * self.pixels)
                    self._row(i, buffer, start, out, let(task.plane * self.pixels))

    def _zeros(self, out, target) -> None:
        zero = const(self.output.zero_point, self.dtype)
        if self.pixels >= LANES:
            with T.serial(self.pixels // LANES) as i:
                store(out, target + i * LANES, zero)
        if self.pixels % LANES:
            store_masked(out, target + self.pixels - self.pixels % LANES, zero, first_lanes(self.pixels % LANES))

    def _row(self, tensor, buffer, start, out, target) -> None:
        scale, zero_point = f32(np.float32(self.spec.scales[tensor])), f32(self.spec.zero_points[tensor])

        def converted(vector):
            return vector if self.same[tensor] else finish(self.rescaled(vector, scale, zero_point), self.output)

        if self.pixels >= LANES:
            with T.serial(self.pixels // LANES) as i:
                store(out, target + i * LANES, converted(load(buffer, start + i * LANES)))
        if self.pixels % LANES:
            first, mask = self.pixels - self.pixels % LANES, first_lanes(self.pixels % LANES)
            store_masked(out, target + first, converted(load_masked(buffer, start + first, mask)), mask)

"""Direct convolution in NCHW16c: conv2d, grouped, transposed and dense, u8 x s8 -> s32 on VNNI and float32 on FMA.

Algorithm
    A transposed convolution is a few ordinary ones, one per output phase; a dense layer is a 1x1 convolution of a 1x1
    map.  So a kernel is a list of `Phase`s, each a grid of taps:

        out[n, o, ty * out_step + out_offset, ...] =
            bias[o] + sum over taps, channels of data[n, c, ty * in_step + tap_offset, ...] * weight[o, c, tap]

    A *step* of the reduction is what one instruction consumes: four channels of u8 (`vpdpbusd`), two of int16
    (`vpmaddwd`, of u8 that are widened in a copy), one of float32 (`fma`).

Schedule
    A tile of `ow_tile` pixels x `oc_tile` blocks of 16 output channels stays in registers over the whole reduction:
    per step `oc_tile` weight vectors are loaded and each of `ow_tile` broadcast data words meets all of them, so
    ow_tile * oc_tile + oc_tile + 1 registers must fit.  Weights are packed in the order in which they are read.
    Accumulators start from the bias.  All tiles form one parallel loop, output channels outermost, so that a thread
    keeps its weights in L2; while it computes the pixels of one tile of output channels, it prefetches the weights of
    the next, which the network's other layers have driven into L3.  Padding is a copy into a scratch tensor before, and
    so is widening; it costs a few percent of the smallest layers.

Evidence
    AMD Zen 5, one thread, 2 x 512-bit `vpdpbusd` per cycle, peak 510 GMAC/s: 3x3 layers of ResNet-50 at 470..497
    GMAC/s, 1024 -> 256 1x1 at 490, 64 -> 256 1x1 at 56x56 (epilogue-bound) at 358.  ow_tile 7 x oc_tile 4 spills
    (33 registers) and falls to 355 where 7 x 2 reaches 490.  Prefetching takes 5 % off ResNet-50 as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel

from . import dot
from .conv2d_geometry import Geometry, Reduction
from .conv2d_knobs import knob_space
from .cpu import Cpu
from .epilogue import Epilogue
from .knobs import KnobSpace
from .lanes import store_vectors
from .padding import emit_padded_copy
from .rule import Constants, Rule
from .value_range import accumulator_range, fits_int32
from .vector import KernelBuilder, Registers, branch, convert, finish, load, prefetch, store

CACHE_LINE = 64
STREAM_BYTES = 8 << 10  # how far ahead weights are fetched where those of a tile do not stay in L2


class Conv2dRule(Rule):
    """Any `Conv2d` spec whose data has channel blocks of 16 or 4."""

    template = "conv2d"
    version = 1

    def knob_space(self, spec: Conv2d, cpu: Cpu) -> KnobSpace:
        return knob_space(spec, cpu)

    def applies(self, spec, cpu: Cpu) -> bool:
        return (
            type(spec) is Conv2d
            and spec.inputs[0].block in (4, LANES)
            and spec.result.block == LANES
            and spec.pad_value is not None
        )

    def build(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        return _Builder(spec, constants, cpu, knobs).build()


class _Builder:
    def __init__(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None):
        self.spec, self.constants, self.cpu = spec, constants, cpu
        self.data, self.result = spec.inputs[0], spec.result
        self.integer = self.data.dtype == "uint8"
        self.acc_dtype = "int32" if self.integer else "float32"
        self.knobs = dict(knobs) if knobs else knob_space(spec, cpu).heuristic
        geometry = Geometry.of(spec, flat=self.knobs["pixels"] == "map")
        self.phases, self.pads = geometry.phases, geometry.pads
        self.height, self.width = geometry.height, geometry.width
        self.fits_int32 = self.integer and fits_int32(spec.program, constants, accumulator_range(spec, constants))
        self.multiply_add = dot.direct_for_cpu(cpu) if self.integer else dot.Float32()
        self.reduction = Reduction.of(spec, self.multiply_add.unit)

    def build(self) -> Kernel:
        spec = self.spec
        weight = self._all_weights(self.constants.weight)
        bias = np.concatenate([self._phase_bias(phase) for phase in self.phases])
        epilogue = Epilogue(spec, self.constants)
        with KernelBuilder(self._name()) as k:
            data, *rest = k.arguments(
                ("data", self.data.physical_shape, self.data.dtype),
                *epilogue.tensor_parameters(),
                ("weight", weight.shape, str(weight.dtype)),
                ("bias", bias.shape, self.acc_dtype),
                *epilogue.channel_parameters(),
                ("out", self.result.physical_shape, self.result.dtype),
            )
            operands = len(epilogue.tensor_parameters())
            self.weight, self.bias, self.out = rest[operands], rest[operands + 1], rest[-1]
            epilogue.bind(rest[:operands], rest[operands + 2 : -1])
            self.epilogue = epilogue
            self.source = self._copied(data)
            offset = 0
            for index, phase in enumerate(self.phases):
                offset += self._emit_phase(phase, offset, index * self.result.channel_blocks)
        constants = (weight, bias, *epilogue.channel_arrays())
        return Kernel(k.func, constants, k.name, dict(self.knobs), pack_weight=self._all_weights)

    def _name(self) -> str:
        spec = self.spec
        kind = "conv2d_transpose" if spec.transposed else "dense" if self.data.shape[2:] == (1, 1) else "conv2d"
        form = f"u8s8_{self.cpu.dot}" if self.integer else "f32"
        return f"{kind}_{form}_{spec.kernel[0]}x{spec.kernel[1]}"

    def _copied(self, data):
        """The data as the multiply-add reads them, with their padding; a copy if either asks for one."""
        dtype = self.multiply_add.data_dtype
        if not any(self.pads) and dtype == self.data.dtype:
            return data
        copied, height, width = emit_padded_copy(data, self.data, self.pads, self.spec.pad_value, dtype)
        if any(self.pads):
            self.height, self.width = height, width
        return copied

    def _oc_tiles(self) -> tuple[int, int]:
        """(number of full tiles of oc_tile blocks, blocks in the last partial tile)."""
        return divmod(self.result.channel_blocks, self.knobs["oc_tile"])

    def _all_weights(self, weight: np.ndarray) -> np.ndarray:
        """A weight of the spec's as the kernel reads it, phase after phase."""
        return np.concatenate([self._packed_weight(phase, weight).ravel() for phase in self.phases])

    def _packed_weight(self, phase, weight: np.ndarray) -> np.ndarray:
        """Weights in reading order: tiles x (channel blocks x taps x steps) x blocks of the tile x vector."""
        (y, x), red = phase, self.reduction
        o, c = self.result.channel_blocks * LANES, self.data.channel_blocks * self.data.block
        dense = np.zeros((o, c, *self.spec.kernel), weight.dtype)
        groups = self.spec.groups
        out_group, in_group = self.result.shape[1] // groups, self.data.shape[1] // groups
        for g in range(groups):
            rows, cols = slice(g * out_group, (g + 1) * out_group), slice(g * in_group, (g + 1) * in_group)
            dense[rows, cols] = weight[cols].swapaxes(0, 1) if self.spec.transposed else weight[rows]
        dense = dense[:, :, list(y.taps)][:, :, :, list(x.taps)]
        inner = red.inner
        blocks = []
        for block, start in enumerate(red.starts):
            part = dense[block * LANES : (block + 1) * LANES, start * red.unit : (start + red.length) * red.unit]
            part = np.pad(part, ((0, 0), (0, red.length * red.unit - part.shape[1]), (0, 0), (0, 0)))
            part = part.reshape(LANES, red.length // inner, inner, red.unit, len(y.taps), len(x.taps))
            blocks.append(part.transpose(1, 4, 5, 2, 0, 3))  # outer, ty, tx, inner, 16, unit
        full, tail = self._oc_tiles()
        tile = self.knobs["oc_tile"]
        groups_of = [blocks[i * tile : (i + 1) * tile] for i in range(full)] + ([blocks[full * tile :]] if tail else [])
        return np.concatenate([self.multiply_add.pack(np.stack(g, axis=4)).ravel() for g in groups_of])

    def _phase_bias(self, phase) -> np.ndarray:
        """Where a phase's accumulators start: the bias, plus what the taps it leaves out would add for real zeros."""
        bias = np.zeros(self.result.channel_blocks * LANES, self.acc_dtype)
        channels = self.result.shape[1]
        if self.constants.bias is not None:
            bias[:channels] = self.constants.bias
        if self.spec.transposed and self.spec.pad_value:
            weight = self.constants.weight.astype(np.int32)
            met = weight[:, :, list(phase[0].taps)][:, :, :, list(phase[1].taps)]
            left_out = (weight.sum((2, 3)) - met.sum((2, 3))).reshape(self.spec.groups, -1, weight.shape[1]).sum(1)
            bias[:channels] += self.spec.pad_value * left_out.ravel()
        return bias

    def _emit_phase(self, phase, weight_offset: int, bias_block: int) -> int:
        """One parallel loop over all tiles; returns the number of weights used."""
        y, x = phase
        oc_tile, ow_tile = self.knobs["oc_tile"], min(self.knobs["ow_tile"], x.count)
        full, tail = self._oc_tiles()
        steps = self.reduction.length * len(y.taps) * len(x.taps)
        tile_weights = steps * oc_tile * self.multiply_add.vector_elements
        x_tiles = -(-x.count // ow_tile)
        n, tiles = self.data.shape[0], full + bool(tail)
        unrolled = self.knobs["unroll"]
        stream = STREAM_BYTES // self.multiply_add.weight_bytes
        distance = {"none": 0, "next": tile_weights, "stream": stream}[self.knobs["prefetch"]]
        with T.parallel(n * tiles * y.count * x_tiles) as task:
            if self.knobs["order"] == "rows":
                # Output channels inside rows: weights stay in L2, and a row of data is read from afar once.
                inner = x_tiles if y.count > 1 else 1  # the only row of 1x1 convolutions is long
                tile, rest = task // inner % tiles, task // (inner * tiles) * inner + task % inner
                tx, rest = rest % x_tiles, rest // x_tiles
                ty, image = rest % y.count, rest // y.count
            else:
                tx, rest = task % x_tiles, task // x_tiles
                ty, rest = rest % y.count, rest // y.count
                # Images inside output channels where weights are the larger part: they are read once for all images.
                data_bytes = math.prod(self.data.physical_shape[1:]) * np.dtype(self.data.dtype).itemsize
                weight_bytes = tiles * tile_weights * self.multiply_add.weight_bytes
                tile, image = (rest // n, rest % n) if weight_bytes > data_bytes else (rest % tiles, rest // tiles)

            def emit(blocks: int, pixels: int) -> None:
                weight = weight_offset + tile * tile_weights
                place = _Place(image, tile * oc_tile, ty, tx * ow_tile, weight, bias_block, blocks, pixels)
                if distance:
                    share = {"task": ty * x_tiles + tx, "tasks": y.count * x_tiles, "parts": steps // unrolled}
                    place = replace(place, next_weights=distance, **share)
                self._emit_tile(phase, place)

            def by_width(blocks: int) -> None:
                last = x.count - (x_tiles - 1) * ow_tile
                branch(
                    tx < x_tiles - 1,
                    x_tiles > 1 and last != ow_tile,
                    lambda: emit(blocks, ow_tile),
                    lambda: emit(blocks, last),
                )

            if full:
                branch(tile < full, tail, lambda: by_width(oc_tile), lambda: by_width(tail))
            else:
                by_width(tail)
        return steps * self.result.channel_blocks * self.multiply_add.vector_elements

    def _emit_tile(self, phase, place: _Place) -> None:
        (y, x), red, blocks, pixels = phase, self.reduction, place.blocks, place.pixels
        acc = Registers(blocks * pixels, self.acc_dtype)
        for o in range(blocks):
            bias = T.Bind(load(self.bias, (place.bias_block + place.block + o) * LANES))
            for i in range(pixels):
                acc[o * pixels + i] = bias
        if y.taps and x.taps:
            inner, unrolled = red.inner, self.knobs["unroll"]
            with T.serial(red.length // inner) as outer, T.serial(len(y.taps)) as i, T.serial(len(x.taps)) as j:
                position = ((outer * len(y.taps) + i) * len(x.taps) + j) * inner
                row = place.ty * y.in_step + y.first + i * y.tap_step + self.pads[0]
                column = place.tx * x.in_step + x.first + j * x.tap_step + self.pads[1]
                with T.serial(inner // unrolled) as part:
                    self._prefetch_weights(place, position // unrolled + part, unrolled)
                    for q in range(unrolled):
                        step = part * unrolled + q
                        address = self._step_address(place, outer, step, row, column)
                        self._emit_step(acc, place, x.in_step, position + step, address)
        self._emit_epilogue(phase, place, acc)

    def _prefetch_weights(self, place, part, steps: int) -> None:
        """A share of the next tile's weights, so that all of them are in L2 when this tile's pixels are done."""
        if not place.next_weights:
            return
        line_elements = CACHE_LINE // self.multiply_add.weight_bytes
        lines = steps * place.blocks * self.multiply_add.vector_elements // line_elements
        share = -(-lines // place.tasks)
        first = (place.task * place.parts + part) * share
        for line in range(share):
            index = place.weight + place.next_weights + (first + line) * line_elements
            prefetch(self.weight, index, into_l1=place.tasks == 1)

    def _step_address(self, place, outer, q, row, column):
        """Flat index of the data of one step at the tile's first pixel."""
        red, block = self.reduction, self.data.block
        start = self._start(place.block)
        if red.whole_blocks:
            channel_block, lane = start // red.per_block + outer, q * red.unit
        else:
            step = start + outer
            channel_block, lane = step // red.per_block, step % red.per_block * red.unit
        plane = place.image * self.data.channel_blocks + channel_block
        return ((plane * self.height + row) * self.width + column) * block + lane

    def _start(self, block):
        """First reduction step of an output-channel block, as an expression of its index."""
        red = self.reduction
        if not any(red.starts):
            return 0
        in_group, out_group = self.data.shape[1] // self.spec.groups, self.result.shape[1] // self.spec.groups
        start = block * LANES // out_group * in_group // red.unit
        return T.min(start, self.data.channel_blocks * red.per_block - red.length)

    def _emit_step(self, acc, place, in_step: int, position, address) -> None:
        width = self.multiply_add.vector_elements
        weights = []
        for o in range(place.blocks):
            index = place.weight + (position * place.blocks + o) * width
            weights.append(self.multiply_add.load_weight(self.weight, index))
        for i in range(place.pixels):
            value = self.multiply_add.broadcast(self.source, address + i * in_step * self.data.block)
            for o in range(place.blocks):
                index = o * place.pixels + i
                acc[index] = self.multiply_add(acc[index], value, weights[o])

    def _emit_epilogue(self, phase, place, acc) -> None:
        y, x = phase
        _, _, out_h, out_w = self.result.shape
        if self.height == 1 and x.count == out_h * out_w:
            out_h, out_w = 1, out_h * out_w
        row = place.ty * y.out_step + y.out_offset
        for o in range(place.blocks):
            plane = place.image * self.result.channel_blocks + place.block + o
            per_channel = self.epilogue.per_channel(place.image, place.block + o)
            places = []
            for i in range(place.pixels):
                pixel = row * out_w + (place.tx + i) * x.out_step + x.out_offset
                value = acc[o * place.pixels + i]
                value = convert(value, "float32") if self.integer else value
                index = (plane * (out_h * out_w) + pixel) * LANES
                places.append((index, place.image * (out_h * out_w) + pixel, value))
            values = self.epilogue.run_all(per_channel, places)
            if x.out_step == 1:
                store_vectors(self.out, places[0][0], values, self.spec.output, self.cpu, self.fits_int32)
            else:
                for (index, _, _), value in zip(places, values, strict=True):
                    store(self.out, index, finish(value, self.spec.output))


@dataclass(frozen=True)
class _Place:
    """A tile: image, first output-channel block, row, first column, first weight, first bias block; and its size."""

    image: Any
    block: Any
    ty: Any
    tx: Any
    weight: Any
    bias_block: int
    blocks: int
    pixels: int
    next_weights: int = 0  # from these weights to those to be fetched ahead: the next tile's, or a bit further on
    task: Any = 0  # which of the `tasks` tiles with the same weights this is
    tasks: int = 1
    parts: int = 1  # unrolled steps of a tile

"""Element-wise kernels: a program over tensors, and every change of dtype or layout.

Algorithm: out = store(program(operands)).  What differs is where sixteen lanes come from:

    columns   sixteen channels of one pixel      packed -> packed, and anything with one pixel per channel
    rows      sixteen pixels of one channel      plain -> plain, image packing
    both      a 16 x 16 transpose in registers   plain -> packed and back; of bytes where one side has bytes

Schedule: four vectors at a time share one 64-byte store; planes are cut into pieces for the threads.  Operands that
are constant over a plane (channel, vector) stay in registers.  Odd pixels are masked, never read or written.

Rejected: integer arithmetic for requantising additions is not bit-exact with float32 programs; `vpmovdb` stores instead
of saturating packs need the lower clamp and two more operations per vector.
"""

from __future__ import annotations

import math

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Elementwise, Kernel, Spec, Tensor

from .cpu import Cpu
from .elementwise_layouts import image, pack, unpack
from .lanes import (
    elements,
    first_lanes,
    last_part,
    load_masked,
    store_masked,
    store_vectors,
    tasks,
)
from .operands import Operands, needs_zeros
from .rule import Constants, Rule, channel_operands
from .vector import KernelBuilder, finish, let, load, store


class ElementwiseRule(Rule):
    """Delivers every `Elementwise` whose tensors share one block and whose blocks `_emitter` knows."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Element-wise orders from block 0 or 16 to 0 or 16, and from 0 to 4."""
        return isinstance(spec, Elementwise) and _emitter(spec) is not None

    def build(self, spec: Elementwise, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        channels = channel_operands(spec.program, constants)
        parameters = [(f"in{i}", t.physical_shape, t.dtype) for i, t in enumerate(spec.inputs)]
        parameters += [(f"channel{i}", c.shape, "float32") for i, c in enumerate(channels)]
        with KernelBuilder("elementwise") as k:
            *sources, out = k.arguments(*parameters, ("out", spec.result.physical_shape, spec.result.dtype))
            emit = _emitter(spec)
            emit(Operands(spec, sources), spec, out, cpu)
        return Kernel(k.func, tuple(channels), "elementwise_" + emit.__name__.strip("_"))


def _emitter(spec: Spec):
    """The function that emits `spec`'s loops; None when there is none."""
    tensors = [t for t, o in zip(spec.inputs, _memory_operands(spec), strict=True) if o.kind == "tensor"]
    blocks = {t.block for t in tensors}
    target = spec.result.block
    if _pixels(spec.result) == 1 and blocks | {target} <= {0, LANES}:
        return _vectors
    if len(blocks) != 1 or any(t.shape != spec.result.shape for t in tensors):
        return None
    packed_map = any(o.kind == "map" and t.block for t, o in zip(spec.inputs, _memory_operands(spec), strict=True))
    if packed_map and LANES not in blocks | {target}:
        return None
    only_tensors = all(o.kind == "tensor" for o in spec.program.operands)
    if blocks == {target} and only_tensors and target in (0, LANES) and not needs_zeros(spec):
        return _flat
    (block,) = blocks
    return {(16, 16): _packed, (0, 0): _plain, (0, 16): pack, (16, 0): unpack, (0, 4): image}.get((block, target))


def _memory_operands(spec):
    return [o for o in spec.program.operands if o.kind != "channel"]


def _pixels(tensor: Tensor) -> int:
    return tensor.shape[2] * tensor.shape[3]


def _flat(operands: Operands, spec, out, cpu) -> None:
    """Tensors only, all in one layout: memory is one line."""
    total = math.prod(spec.result.physical_shape)
    vectors, tail = divmod(total, LANES)
    buffers = operands.tensors()

    def values(loads):
        return operands.run([operands.real(o, v) for (o, _, _), v in zip(operands.items, loads, strict=True)])

    def group(first, count):
        results = [values([load(b, (first + i) * LANES) for b in buffers]) for i in range(count)]
        store_vectors(out, first * LANES, results, spec.output, cpu)

    with tasks(1, vectors // 4, total, cpu) as task:
        if vectors >= 4:
            with T.serial(task.count) as unit:
                group((task.begin + unit) * 4, 4)
        with last_part(task):
            group(vectors - vectors % 4, vectors % 4)
            if tail:
                mask = first_lanes(tail)
                result = values([load_masked(b, vectors * LANES, mask) for b in buffers])
                store_masked(out, vectors * LANES, finish(result, spec.output), mask)


def _packed(operands: Operands, spec, out, cpu) -> None:
    """Packed to packed: a pixel is a vector, operands constant over a plane stay in registers."""
    pixels, blocks = operands.pixels, operands.blocks

    def group(task, first, count):
        n, block = task.plane // blocks, task.plane % blocks
        results = [finite(operands.run(operands.columns(fixed, n, block, first + i))) for i in range(count)]
        store_vectors(out, (task.plane * pixels + first) * LANES, results, spec.output, cpu)

    with tasks(spec.result.shape[0] * blocks, pixels // 4, elements(spec), cpu) as task:
        fixed = operands.fixed_columns(task.plane // blocks, task.plane % blocks)
        finite = operands.keep_finite(task.plane % blocks)
        if pixels >= 4:
            with T.serial(task.count) as unit:
                group(task, (task.begin + unit) * 4, 4)
        if pixels % 4:
            with last_part(task):
                group(task, pixels - pixels % 4, pixels % 4)


def _vectors(operands: Operands, spec, out, cpu) -> None:
    """One pixel per channel, [N, C] in effect: plain and packed differ in padding only."""
    channels, blocks = operands.channels, operands.blocks
    with tasks(spec.result.shape[0] * blocks, 1, elements(spec), cpu) as task:
        n, block = let(task.plane // blocks), let(task.plane % blocks)
        values = operands.columns(operands.fixed_columns(n, block), n, block, 0)
        result = finish(operands.keep_finite(block)(operands.run(values)), spec.output)
        if spec.result.block:
            store(out, task.plane * LANES, result)
        elif channels % LANES == 0:
            store(out, n * channels + block * LANES, result)
        else:
            store_masked(out, n * channels + block * LANES, result, first_lanes(channels - block * LANES))


def _plain(operands: Operands, spec, out, cpu) -> None:
    """Plain to plain with operands per channel: a row of pixels at a time."""
    pixels, channels = operands.pixels, operands.channels
    unit = 4 * LANES

    def group(task, first, count):
        n, channel = task.plane // channels, task.plane % channels
        results = [operands.run(operands.rows(n, channel, first + i * LANES)) for i in range(count)]
        store_vectors(out, task.plane * pixels + first, results, spec.output, cpu)

    with tasks(spec.result.shape[0] * channels, pixels // unit, elements(spec), cpu) as task:
        if pixels >= unit:
            with T.serial(task.count) as step:
                group(task, (task.begin + step) * unit, 4)
        with last_part(task):
            first = pixels - pixels % unit
            group(task, first, pixels % unit // LANES)
            if pixels % LANES:
                first, mask = pixels - pixels % LANES, first_lanes(pixels % LANES)
                values = operands.rows(task.plane // channels, task.plane % channels, first, mask)
                store_masked(out, task.plane * pixels + first, finish(operands.run(values), spec.output), mask)

"""How long a convolution takes by one algorithm or another, by a model of the CPU: what chooses between them.

The unit is one vector instruction on one of the ports that multiply: a `vpdpbusd`, an `fma`, a shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tvm_int8 import winograd
from tvm_int8.specs import LANES, Conv2d, WinogradConv2d

from .cpu import Cpu
from .winograd_knobs import tile_counts

Measured = Callable[[Conv2d], Mapping[str, float]]
"""What an order has been measured to take, by the CPU that measured: times of different ones do not compare."""
STEP = {"avx512vnni": 1.0, "avxvnni": 2.0, "avx512bw": 5.0, "avx2": 10.0}
"""Instructions that multiply four channels of u8 by s8, for sixteen output channels."""
WORD_STEP = {"avx512bw": 4.0, "avx2": 8.0}
"""The same for s16 by s16, without VNNI."""
DIRECT_STEP = {**STEP, "avx2": WORD_STEP["avx2"]}
"""Of a direct convolution, whose data are widened once."""
TILES_OF_AMX = 1 / 8
"""How many times as long it takes with AMX."""
EPILOGUE = 6.0
"""Of a vector of results."""
GROUP_START = 5.0
"""Of sums: begun and put away, per vector."""
DATA = {2: 1.8, 4: 2.75}
RESULT = {2: 1.9, 4: 2.3}
"""Transforms of one axis by its outputs: their product over both axes per position and vector of sixteen channels."""
ROUNDING = 2.0
"""Of transformed data to 8 bits, in steps that fit their tile, per narrow position and vector of sixteen channels."""
FLOAT_DATA = 2.0
"""How much longer data take in float32, sixteen lanes instead of 32."""
WEIGHT_BYTES = 4.0
"""Of weights, read per instruction in a network: fewer than in a kernel that runs alone."""
NEAR_SHARE = 1 / 8
"""Of L2, that a layer's weights may take to be there in its next turn: larger ones are those of large networks."""

FIXED = 8000.0
"""Of a call by tiles, beyond that of a direct convolution: another copy, another buffer, loops that are begun."""
FIXED_MIXED = 6000.0
"""Of two kinds of products in a call."""
MARGIN = 1.05
"""How many times faster another algorithm has to be to be taken."""


def time_of(spec: Conv2d, cpu: Cpu) -> float:
    """Instructions of a convolution of stride 1, `Conv2d` or `WinogradConv2d`."""
    return _winograd(spec, cpu) if isinstance(spec, WinogradConv2d) else _direct(spec, cpu)


def _direct(spec: Conv2d, cpu: Cpu) -> float:
    n, _, height, width = spec.result.shape
    in_blocks, out_blocks = _blocks(spec)
    vectors = n * height * width * out_blocks
    channels = in_blocks * LANES // spec.groups
    taps = spec.kernel[0] * spec.kernel[1]
    integer = spec.inputs[0].dtype == "uint8"
    step = DIRECT_STEP[cpu.dot] * (TILES_OF_AMX if cpu.amx else 1) / 4 if integer else 512 / cpu.vector_bits
    size = taps * channels * out_blocks * LANES * (1 if integer else 4)
    return vectors * (taps * channels * step + EPILOGUE) + _reading(size, cpu)


def _winograd(spec: WinogradConv2d, cpu: Cpu) -> float:
    n, _, height, width = spec.result.shape
    rows, columns = tile_counts(spec)
    tiles, positions = n * rows * columns, winograd.positions(spec.tile)
    in_blocks, out_blocks = _blocks(spec)
    integer, halves = spec.inputs[0].dtype == "uint8", 512 / cpu.vector_bits
    step = STEP[cpu.dot] / 4 if integer else halves
    word_step = WORD_STEP.get(cpu.dot, 2 * STEP[cpu.dot] * cpu.word_instructions) / 4
    wide = len(spec.wide)
    products = in_blocks * LANES * ((positions - wide) * step + wide * word_step) + positions * GROUP_START
    data, result = (math.prod(cost[outputs] for outputs in spec.tile) for cost in (DATA, RESULT))
    transforms = positions * halves * (in_blocks * data * (1 if integer else FLOAT_DATA) + out_blocks * result)
    if integer:
        transforms += (positions - wide) * halves * in_blocks * ROUNDING
    size = (positions + wide) * in_blocks * out_blocks * LANES**2 * (1 if integer else 4)
    epilogue = n * height * width * out_blocks * EPILOGUE
    fixed = FIXED + (FIXED_MIXED if 0 < wide < positions else 0.0)
    return tiles * (products * out_blocks + transforms) + epilogue + fixed + _reading(size, cpu)


def _blocks(spec: Conv2d) -> tuple[int, int]:
    """Of sixteen channels, of data and of results, wherever these will lie."""
    return -(-spec.inputs[0].shape[1] // LANES), -(-spec.result.shape[1] // LANES)


def _reading(weight_bytes: int, cpu: Cpu) -> float:
    """What it costs to read weights as far as L2 does not keep them."""
    return max(0.0, weight_bytes - NEAR_SHARE * cpu.l2_bytes) / WEIGHT_BYTES


def fastest(specs: Sequence[Conv2d], cpu: Cpu, measured: Measured = lambda spec: {}) -> int:
    """Index of the algorithm that takes least time; the first one where others gain next to nothing.

    Where one CPU has `measured` the first and others, these alone count: nobody measures what the model expects nothing
    of. What positions of 16 bits add is the model's.
    """
    times = dict(enumerate(time_of(spec, cpu) for spec in specs))
    narrow = [replace(spec, wide=()) if isinstance(spec, WinogradConv2d) else spec for spec in specs]
    widening = [times[i] / time_of(spec, cpu) for i, spec in enumerate(narrow)]
    found = [measured(spec) for spec in narrow]
    for measurer in found[0]:
        comparable = {i: found[i][measurer] * widening[i] for i in times if measurer in found[i]}
        if len(comparable) > 1:
            times = comparable
            break
    best = min(times, key=lambda index: times[index])
    return best if times[0] > MARGIN * times[best] else 0

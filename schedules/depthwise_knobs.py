"""Knobs of the depthwise convolution (see `depthwise_conv2d`).

body     "interleaved": four taps per `vpdpbusd`; "plain": widened multiplies, for everything
chunks   tasks per channel block
rows     output rows that the interleaved body computes together
"""

from __future__ import annotations

import numpy as np

from tvm_int8.specs import LANES, Conv2d

from .cpu import Cpu
from .depthwise_body import Geometry
from .depthwise_interleaved import can_interleave
from .knobs import Knobs, KnobSpace


def knob_space(spec: Conv2d, cpu: Cpu) -> KnobSpace:
    """The knobs of a depthwise convolution on a CPU."""
    g = Geometry(spec)
    bodies = ("interleaved", "plain") if can_interleave(spec, cpu) else ("plain",)
    least, height = _least_chunks(spec, cpu), g.out_height
    fewest = min(cpu.threads, height)
    chunks = {n for n in range(1, min(4 * least + 4, height) + 1) if n >= fewest or n == least}

    def is_valid(knobs: Knobs) -> bool:
        if knobs["body"] == "plain":
            return knobs["rows"] == 1
        return knobs["rows"] <= min(height // knobs["chunks"], _most_rows(g))

    def estimate(knobs: Knobs) -> float:
        slower = 3.0 if knobs["body"] == "plain" and len(bodies) > 1 else 1.0
        return slower * _cycles(g, knobs["chunks"], knobs["rows"])

    def features(knobs: Knobs) -> dict[str, float]:
        longest = -(-height // knobs["chunks"])
        row_bytes = g.pitch * LANES * np.dtype(spec.inputs[0].dtype).itemsize
        return {
            "estimate": estimate(knobs),
            "plain": float(knobs["body"] == "plain"),
            "copied_bytes": g.rows_in(longest) * row_bytes,
            "row_blocks": -(-longest // knobs["rows"]),
            "tasks": knobs["chunks"] * spec.result.channel_blocks,
        }

    heuristic = {"body": bodies[0], **_heuristic(spec, cpu, bodies[0])}
    choices = {"body": bodies, "chunks": tuple(sorted(chunks)), "rows": tuple(range(1, min(8, height) + 1))}
    return KnobSpace(heuristic, choices, is_valid, estimate, features)


def _heuristic(spec: Conv2d, cpu: Cpu, body: str) -> Knobs:
    """At least `_least_chunks`; up to twice as many where fewer rows are copied, interleaved or computed twice."""
    g = Geometry(spec)
    least, out_height = _least_chunks(spec, cpu), g.out_height
    points = (
        (_cycles(g, chunks, rows), chunks, rows)
        for chunks in range(least, min(2 * least, out_height) + 1)
        for rows in range(1, min(out_height // chunks, _most_rows(g)) + 1)
    )
    _, chunks, rows = min(points)
    return {"chunks": chunks, "rows": rows if body == "interleaved" else 1}


def _least_chunks(spec: Conv2d, cpu: Cpu) -> int:
    """As many as let a task's rows fit three quarters of L1 and leave each thread a few tasks."""
    g = Geometry(spec)
    planes = spec.result.shape[0] * spec.result.channel_blocks
    row_bytes = g.pitch * LANES * np.dtype(spec.inputs[0].dtype).itemsize
    wanted = 1 if cpu.threads == 1 else 4 * cpu.threads
    least = 1
    while least < g.out_height and (
        g.rows_in(-(-g.out_height // least)) * row_bytes > cpu.l1_bytes * 3 // 4 or planes * least < wanted
    ):
        least += 1
    return least


def _most_rows(g: Geometry) -> int:
    """Output rows that may be computed together: 8, or 2 where weights do not fit registers and share few rows."""
    dots = 4 * g.spec.kernel[0] * -(-g.spec.kernel[1] // 4)
    most = 2 if dots > 12 and g.spec.strides[0] == 1 else 8
    return max(1, min(most, 1000 // (dots + 24)))  # a thousand instructions are enough


def _cycles(g: Geometry, chunks: int, rows: int) -> float:
    """Per channel block, roughly: copy of the rows, then blocks of `rows` x 4 outputs, four operations a cycle."""
    kh, kw = g.spec.kernel
    groups, longest = -(-kw // 4), -(-g.out_height // chunks)
    read = sum(bool(readers) for readers in g.interleavings(rows))
    block = read * (kw * g.spec.strides[1] + 8 * groups) + rows * (4 * kh * groups + 24)
    blocks = -(-longest // rows) * -(-g.out_width // 4)
    return chunks * (100 + g.rows_in(longest) * g.pitch / 4 * 1.5 + blocks * block / 4)

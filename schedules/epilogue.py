"""Emits a spec's program behind the accumulators of a kernel: operands fetched, steps run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Spec

from .programs import run_program, run_programs, side_by_side
from .rule import Constants, channel_operands
from .vector import finish, load, real


class Epilogue:
    """The program of `spec` over NCHW16c tensors, with `acc` as one of its operands.

    Use: declare `tensor_parameters()` and `channel_parameters()`, `bind` the buffers, then per channel block
    `per_channel(...)` once and `emit(...)` for each vector of 16 channels.
    """

    def __init__(self, spec: Spec, constants: Constants):
        self.spec = spec
        self.operands = spec.program.operands
        self._channels = channel_operands(spec.program, constants)
        self._tensors: list = []
        self._channel_buffers: list = []

    def tensor_parameters(self) -> list[tuple]:
        """(name, shape, dtype) of the tensors after inputs[0]."""
        return [(f"operand{i}", t.physical_shape, t.dtype) for i, t in enumerate(self.spec.inputs[1:])]

    def channel_parameters(self) -> list[tuple]:
        return [(f"channel{i}", a.shape, "float32") for i, a in enumerate(self._channels)]

    def channel_arrays(self) -> list[np.ndarray]:
        return self._channels

    def bind(self, tensors, channels) -> None:
        """Give the buffers declared for the parameters, in order."""
        self._tensors, self._channel_buffers = list(tensors), list(channels)

    def per_channel(self, image, block) -> list:
        """Load what is the same for every pixel of a channel block: one entry per operand, None for the others."""
        tensors, channels = iter(self._tensors), iter(self._channel_buffers)
        values: list = []
        for operand in self.operands:
            if operand.kind == "channel":
                values.append(T.Bind(load(next(channels), block * LANES)))
            elif operand.kind == "acc":
                values.append(None)
            else:
                buffer = next(tensors)
                if operand.kind == "vector":
                    plane = image * self.spec.result.channel_blocks + block
                    values.append(T.Bind(real(load(buffer, plane * LANES), operand.dtype, operand.zero_point)))
                else:
                    values.append(None)
        return values

    def run(self, per_channel: list, index, pixel, accumulator):
        """The program's result, not yet narrowed to the output's dtype.

        Parameters
        ----------
        per_channel : what `per_channel` returned
        index : flat index of the vector in the output
        pixel : flat [N, H, W] index
        accumulator : float32 vector
        """
        return run_program(self.spec.program, self._values(per_channel, index, pixel, accumulator))

    def run_all(self, per_channel: list, places: Sequence[tuple]) -> list:
        """`run` for several (index, pixel, accumulator), a few at a time side by side."""
        columns = [self._values(per_channel, *place) for place in places]
        size = side_by_side(self.spec.program)
        groups = [columns[i : i + size] for i in range(0, len(columns), size)]
        return [result for group in groups for result in run_programs(self.spec.program, group)]

    def _values(self, per_channel: list, index, pixel, accumulator) -> list:
        """One float32 vector per operand."""
        tensors = iter(self._tensors)
        values = []
        for operand, value in zip(self.operands, per_channel, strict=True):
            buffer = next(tensors) if operand.kind in ("tensor", "vector", "map") else None
            if operand.kind == "acc":
                value = accumulator
            elif operand.kind == "tensor":
                value = real(load(buffer, index), operand.dtype, operand.zero_point)
            elif operand.kind == "map":
                scalar = real(load(buffer, pixel * LANES, 1), operand.dtype, operand.zero_point, 1)
                value = T.broadcast(scalar, LANES)
            values.append(value)
        return values

    def emit(self, per_channel: list, index, pixel, accumulator):
        """`run`, narrowed to the output's dtype."""
        return finish(self.run(per_channel, index, pixel, accumulator), self.spec.output)

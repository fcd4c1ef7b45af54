"""The operands of an element-wise program as vectors: sixteen channels of a pixel, or sixteen pixels of a channel."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES

from .lanes import first_lanes, load_masked
from .programs import run_program
from .vector import f32, let, load, real

_MAY_DIVIDE = {"div", "sqrt"}


def needs_zeros(spec) -> bool:
    """Whether garbage in padding lanes could become Inf or NaN, which float32 outputs must not hold."""
    divides = any(step[0] in _MAY_DIVIDE for step in spec.program.steps)
    return spec.result.dtype == "float32" and spec.result.shape[1] % LANES != 0 and divides


class Operands:
    """The operands of a program as vectors, in either orientation."""

    def __init__(self, spec, buffers):
        n_inputs = len(spec.inputs)
        inputs, channels = iter(zip(spec.inputs, buffers[:n_inputs], strict=True)), iter(buffers[n_inputs:])
        self.spec, self.program = spec, spec.program
        self.items = [
            (o, None, next(channels)) if o.kind == "channel" else (o, *next(inputs)) for o in spec.program.operands
        ]
        _, self.channels, height, width = spec.result.shape
        self.blocks, self.pixels = -(-self.channels // LANES), height * width

    @property
    def has_packed_map(self) -> bool:
        """Whether a map operand is NCHW16c, so that its pixels are not neighbours."""
        return any(o.kind == "map" and t.block for o, t, _ in self.items)

    def _vector_index(self, tensor, n, channel):
        return n * (self.blocks * LANES if tensor.block else self.channels) + channel

    def fixed_columns(self, n, block) -> list:
        """What is the same for all pixels of a channel block; None for the operands that are not."""
        fixed = []
        for operand, tensor, buffer in self.items:
            value = None
            if operand.kind == "channel":
                value = let(load(buffer, block * LANES))
            elif operand.kind == "vector" or (operand.kind == "tensor" and self.pixels == 1):
                value = let(self.real(operand, self._channel_vector(tensor, buffer, n, block)))
            fixed.append(value)
        return fixed

    def _channel_vector(self, tensor, buffer, n, block):
        index = self._vector_index(tensor, n, block * LANES)
        if tensor.block or self.channels % LANES == 0:
            return load(buffer, index)
        return load_masked(buffer, index, first_lanes(self.channels - block * LANES))

    def columns(self, fixed, n, block, pixel, transposed=None) -> list:
        """The operands at one pixel; `transposed` overrides the tensors (one vector per tensor, as in memory)."""
        values = list(fixed)
        tensors = iter(transposed or ())
        for i, (operand, tensor, buffer) in enumerate(self.items):
            if values[i] is not None:
                continue
            if operand.kind == "map":
                scalar = load(buffer, (n * self.pixels + pixel) * (tensor.block or 1), 1)
                values[i] = T.broadcast(let(real(scalar, operand.dtype, operand.zero_point, 1)), LANES)
            elif transposed is not None:
                values[i] = self.real(operand, next(tensors))
            else:
                values[i] = self.real(operand, load(buffer, ((n * self.blocks + block) * self.pixels + pixel) * LANES))
        return values

    def rows(self, n, channel, pixel, mask=None, transposed=None) -> list:
        """The operands at sixteen pixels of one channel."""
        values, tensors = [], iter(transposed or ())
        for operand, tensor, buffer in self.items:
            if operand.kind == "channel":
                values.append(T.broadcast(load(buffer, channel, 1), LANES))
            elif operand.kind == "vector":
                scalar = load(buffer, self._vector_index(tensor, n, channel), 1)
                values.append(T.broadcast(let(real(scalar, operand.dtype, operand.zero_point, 1)), LANES))
            elif operand.kind == "map":
                values.append(self.real(operand, self._row_of_map(tensor, buffer, n, pixel, mask)))
            elif transposed is not None:
                values.append(self.real(operand, next(tensors)))
            else:
                values.append(self.real(operand, self.row(buffer, n, channel, pixel, mask)))
        return values

    def row(self, buffer, n, channel, pixel, mask=None):
        """Sixteen pixels of one channel of a plain tensor, as they are in memory."""
        index = (n * self.channels + channel) * self.pixels + pixel
        return load(buffer, index) if mask is None else load_masked(buffer, index, mask)

    def _row_of_map(self, tensor, buffer, n, pixel, mask):
        assert not tensor.block
        index = n * self.pixels + pixel
        return load(buffer, index) if mask is None else load_masked(buffer, index, mask)

    def tensors(self) -> list:
        """The buffers of the tensor operands, in order."""
        return [buffer for operand, _, buffer in self.items if operand.kind == "tensor"]

    @staticmethod
    def real(operand, value):
        """A loaded vector as the program sees it, bound to a name."""
        return let(real(value, operand.dtype, operand.zero_point))

    def run(self, values):
        """The program's result over one vector per operand."""
        return run_program(self.program, values)

    def keep_finite(self, block):
        """A function that clears the padding lanes of a float32 result where they could hold Inf or NaN."""
        if not needs_zeros(self.spec):
            return lambda value: value
        mask = first_lanes(self.channels - block * LANES)
        return lambda value: T.Select(mask, value, f32(0))

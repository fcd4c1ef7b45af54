"""Spatial slices and padding of tensors in any block.

Algorithm: out[y, x] = in[y * step_y + start_y, x * step_x + start_x], `pad_value` (as stored) outside the input.

Schedule: rows of all planes are shared out to the threads; a row is filled left, copied, filled right, 64 bytes at a
time.  What lies inside is known when compiling.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from tvm_int8.specs import Kernel, Spec, Window2d

from .cpu import Cpu
from .lanes import elements, first_lanes, load_masked, store_masked, tasks
from .rule import Constants, Rule
from .vector import KernelBuilder, const, let, load, store


class Window2dRule(Rule):
    """Delivers every `Window2d` whose output has the input's dtype and block."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Copies within one dtype and layout."""
        if not isinstance(spec, Window2d) or spec.program.steps:
            return False
        (data,) = spec.inputs
        return (data.dtype, data.block) == (spec.result.dtype, spec.result.block) and spec.pad_value is not None

    def build(self, spec: Window2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        with KernelBuilder("window2d") as k:
            source, out = k.arguments(
                ("data", spec.inputs[0].physical_shape, spec.result.dtype),
                ("out", spec.result.physical_shape, spec.result.dtype),
            )
            _emit(spec, source, out, cpu)
        return Kernel(k.func, (), "window2d")


def _inside(spec: Window2d, axis: int) -> tuple[int, int]:
    """[begin, end) of the output positions along `axis` whose source lies inside the input."""
    size, start, step = spec.inputs[0].shape[2 + axis], spec.start[axis], spec.step[axis]
    length = spec.result.shape[2 + axis]
    begin = min(max(0, -(start // step)), length)
    end = min(max(begin, -(-(size - start) // step)), length)
    return begin, end


def _emit(spec: Window2d, source, out, cpu) -> None:
    _, _, in_height, in_width = spec.inputs[0].shape
    batch, channels, height, width = spec.result.shape
    unit = spec.result.block or 1
    top, bottom = _inside(spec, 0)
    left, right = _inside(spec, 1)
    planes = batch * (spec.result.channel_blocks if spec.result.block else channels)

    def fill(target, pixels):
        _fill(out, target * unit, pixels * unit, spec.pad_value)

    with tasks(planes, height, elements(spec), cpu) as task, T.serial(task.count) as i:
        y = let(task.begin + i)
        target = let((task.plane * height + y) * width)
        with T.If((y >= top) & (y < bottom) if right > left else T.bool(False)):
            with T.Then():
                row = task.plane * in_height + y * spec.step[0] + spec.start[0]
                start = let(row * in_width + left * spec.step[1] + spec.start[1])
                fill(target, left)
                if spec.step[1] == 1:
                    _copy(out, (target + left) * unit, source, start * unit, (right - left) * unit)
                elif right > left:
                    with T.serial(right - left) as x:
                        value = load(source, (start + x * spec.step[1]) * unit, unit)
                        store(out, (target + left + x) * unit, value, unit)
                fill(target + right, width - right)
            with T.Else():
                fill(target, width)


def _line(buffer, count: int, write) -> None:
    """Call write(offset, lanes, mask or None) so as to cover `count` elements in pieces of at most 64 bytes."""
    lanes = 16 if str(buffer.ty.dtype) == "float32" else 64
    if count >= lanes:
        with T.serial(count // lanes) as i:
            write(i * lanes, lanes, None)
    offset = count - count % lanes
    while count - offset >= 16:
        write(offset, 16, None)
        offset += 16
    if offset < count:
        write(offset, 16, first_lanes(count - offset))


def _copy(out, target, source, start, count: int) -> None:
    def write(offset, lanes, mask):
        if mask is None:
            store(out, target + offset, load(source, start + offset, lanes), lanes)
        else:
            store_masked(out, target + offset, load_masked(source, start + offset, mask), mask)

    _line(out, count, write)


def _fill(out, target, count: int, value) -> None:
    def write(offset, lanes, mask):
        vector = const(value, str(out.ty.dtype), lanes)
        if mask is None:
            store(out, target + offset, vector, lanes)
        else:
            store_masked(out, target + offset, vector, mask)

    _line(out, count, write)

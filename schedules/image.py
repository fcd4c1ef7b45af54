"""Images of bytes, plain NCHW, to NHW4c: their channels side by side, one word per pixel, with a border if wanted.

Algorithm
    out[y, x, c] = in[c, y + start_y, x + start_x], and outside of the image the border's byte for channel c; lanes
    behind the last channel are 0. Nothing is computed: sixteen pixels of each channel are widened, shifted and or-ed.

Schedule
    A task is some rows of the output. The last sixteen pixels of a row may overlap those before.

Evidence
    Intel Sapphire Rapids, one thread of a shared machine, November 2026, us (GB/s of input and output): 3 x 224x224 4.0
    (87), with a border of 3 5.5 (64); through the floats of an element-wise program 6.2.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Elementwise, Kernel, Spec, Window2d

from .cpu import Cpu
from .lanes import elements, first_lanes, load_masked, store_masked, tasks, widen
from .rule import Constants, Rule
from .vector import KernelBuilder, const, let, load, store

CHANNELS = 4
WORDS = LANES * CHANNELS  # bytes of sixteen pixels


class ImageRule(Rule):
    """Delivers a `Window2d` of step 1, or an `Elementwise` that changes nothing, from plain uint8 to NHW4c."""

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Whether `spec` packs an image of bytes."""
        if len(spec.inputs) != 1 or spec.result.block != CHANNELS or spec.result.shape[1] > CHANNELS:
            return False
        data = spec.inputs[0]
        if data.block or (data.dtype, spec.result.dtype) != ("uint8", "uint8"):
            return False
        return (isinstance(spec, Window2d) and spec.step == (1, 1)) or _changes_nothing(spec)

    def build(self, spec, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; it has no knobs."""
        border = [_border(spec, constants)] if isinstance(spec, Window2d) else []
        with KernelBuilder("image") as k:
            source, *rest, out = k.arguments(
                ("data", spec.inputs[0].physical_shape, "uint8"),
                *(("border", array.shape, "uint8") for array in border),
                ("out", spec.result.physical_shape, "uint8"),
            )
            _emit(spec, source, rest[0] if rest else None, out, cpu)
        return Kernel(k.func, tuple(border), "pad_image_u8" if border else "image_u8")


def _changes_nothing(spec: Spec) -> bool:
    if not isinstance(spec, Elementwise) or spec.program.steps or len(spec.program.operands) != 1:
        return False
    operand, output = spec.program.operands[0], spec.output
    whole = output.low + output.zero_point <= 0 and output.high + output.zero_point >= 255
    return operand.kind == "tensor" and operand.zero_point == output.zero_point and whole


def _border(spec: Window2d, constants: Constants) -> np.ndarray:
    """Sixteen pixels of what is outside of the image, [64]."""
    channels = spec.result.shape[1]
    values = constants.pad if spec.pad_value is None else np.full(channels, spec.pad_value)
    assert values is not None
    return np.tile(np.pad(np.asarray(values, np.uint8), (0, CHANNELS - channels)), LANES)


def _emit(spec, source, border, out, cpu: Cpu) -> None:
    _, channels, in_height, in_width = spec.inputs[0].shape
    images, _, height, width = spec.result.shape
    start_y, start_x = spec.start if isinstance(spec, Window2d) else (0, 0)
    left = min(max(-start_x, 0), width)
    right = max(min(in_width - start_x, width), left)  # behind the last pixel copied
    top, bottom = max(-start_y, 0), in_height - start_y

    with tasks(images, height, elements(spec), cpu) as task, T.serial(task.count) as i:
        y = let(task.begin + i)
        target = let((task.plane * height + y) * width)

        def copy(image=task.plane, y=y, target=target) -> None:
            _fill(out, border, target, left)
            rows = [
                let(((image * channels + c) * in_height + y + start_y) * in_width + left + start_x)
                for c in range(channels)
            ]
            _interleave(source, rows, out, target + left, right - left)
            _fill(out, border, target + right, width - right)

        if top == 0 and bottom >= height:
            copy()
        else:
            with T.If((y >= top) & (y < bottom)):
                with T.Then():
                    copy()
                with T.Else():
                    _fill(out, border, target, width)


def _interleave(source, rows, out, target, count: int) -> None:
    """`count` pixels, from flat indices `rows` of each channel's bytes to pixel `target`."""

    def words(offset, mask=None):
        values = [load(source, r + offset) if mask is None else load_masked(source, r + offset, mask) for r in rows]
        word = widen(values[0])
        for i, value in enumerate(values[1:], start=1):
            word = word | (widen(value) << const(8 * i, "int32", LANES))
        return T.reinterpret(f"uint8x{WORDS}", word)

    if count >= LANES:
        with T.serial(-(-count // LANES)) as i:
            offset = let(T.min(i * LANES, count - LANES))
            store(out, (target + offset) * CHANNELS, words(offset), WORDS)
    elif count > 0:
        mask = first_lanes(count)
        store_masked(out, target * CHANNELS, words(0, mask), first_lanes(count * CHANNELS, WORDS))


def _fill(out, border, target, count: int) -> None:
    """`count` pixels of the border from pixel `target` on."""
    if count <= 0:
        return
    pixels = let(load(border, 0, WORDS))
    if count >= LANES:
        with T.serial(count // LANES) as i:
            store(out, (target + i * LANES) * CHANNELS, pixels, WORDS)
    if count % LANES:
        first = target + count - count % LANES
        store_masked(out, first * CHANNELS, pixels, first_lanes(count % LANES * CHANNELS, WORDS))

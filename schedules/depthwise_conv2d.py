"""Depthwise convolution in NCHW16c, u8 x s8 -> s32 on VNNI and float32 on FMA.

Algorithm
    out[n, c, y, x] = bias[c] +
        sum over i, j of data[n, c, y * sh + i * dh - top, x * sw + j * dw - left] * weight[c, i, j]

Schedule
    One task is some rows of one channel block.  It copies the rows it needs, with their padding, into scratch memory
    that stays in L1, so nothing behind that tests for borders.  Then one of two bodies:

    *interleaved* (VNNI, horizontal stride 1 or 2): four pixels x 16 channels are one 64-byte vector, and so is every
    tap of them: the row itself shifted by a pixel, or every second pixel of two vectors.  Four taps of a kernel row,
    interleaved byte by byte (eight `vpunpck`), are what one `vpdpbusd` multiplies: accumulator j of 4 holds channels
    4j..4j+3 of the four pixels, one pixel a 16-byte lane.  An interleaved input row serves all kernel rows, so R output
    rows are computed together: R * sh + KH - sh interleavings and 4 * R * KH `vpdpbusd` for 64 * R outputs of a kernel
    not wider than four.  Missing taps are any data times zero.  The epilogue runs in that arrangement (its constants
    are packed alike), and `vpackssdw`, `vpackuswb` restore the channels' order while they narrow.

    *plain* (everything else): 16 channels of a pixel are one vector, up to eight pixels a tile, widened multiplies.

Evidence
    AMD Zen 5 at about 3.7 GHz, one thread, u8, November 2026.  The bound counts vector instructions, four a cycle (3x3,
    stride 1: 12 `vpdpbusd`, 21 of the epilogue, 8 unpacks and those of two more rows), and a store a cycle in the copy.

        channels, map   kernel, stride   us     cycles per 64 outputs   bound
        64, 112x112     3x3, 1           58     17                      12
        128, 56x56      3x3, 2           11.7   27                      18
        256, 28x28      3x3, 1           13.7   16                      12
        512, 14x14      3x3, 1           8.4    20                      14 (two of sixteen columns are computed twice)
        240, 14x14      5x5, 1           8.6    43                      42 (loads, two a cycle: weights come from L1)

    Only two rows together where kernel rows x tap groups exceed three: there weights leave the registers, and LLVM
    spills them once more per row.  Rejected: interleaving taps of different kernel rows (nine taps in three groups cost
    22 shuffles per 64 outputs instead of 8 to 10); hiding the weights from LLVM's hoisting (no faster).
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel

from .cpu import Cpu
from .depthwise_body import Body, pad_channels_last
from .depthwise_interleaved import Interleaved
from .depthwise_knobs import knob_space
from .knobs import KnobSpace
from .rule import Constants, Rule
from .vector import Registers, convert, fma, let, load, store


class DepthwiseConv2dRule(Rule):
    """Depthwise `Conv2d` specs of channel multiplier 1 over NCHW16c, uint8 or float32 data."""

    template = "depthwise_conv2d"
    version = 1

    def knob_space(self, spec: Conv2d, cpu: Cpu) -> KnobSpace:
        return knob_space(spec, cpu)

    def applies(self, spec, cpu: Cpu) -> bool:
        """Whether `spec` is such a convolution."""
        if not isinstance(spec, Conv2d) or not spec.depthwise:
            return False
        data = spec.inputs[0]
        return data.dtype in ("uint8", "float32") and data.block == spec.result.block == LANES

    def build(self, spec: Conv2d, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel; knobs as `depthwise_knobs` names them."""
        knobs = knobs or knob_space(spec, cpu).heuristic
        body = Interleaved if knobs["body"] == "interleaved" else Plain
        return body(spec, constants, knobs).build()


class Plain(Body):
    """Sixteen channels of one pixel a vector, a tile of pixels in registers."""

    @property
    def form(self) -> str:
        """Its part of the kernel's name."""
        return "u8s8" if self.integer else "f32"

    def packed_weight(self, weight: np.ndarray) -> np.ndarray:
        """[CB, KH, KW, 16], int16 (LLVM then multiplies with one `vpmaddwd`) or float32."""
        kh, kw = self.spec.kernel
        weight = weight.reshape(-1, kh * kw).T
        packed = pad_channels_last(weight).reshape(kh, kw, -1, LANES).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(packed, np.int16 if self.integer else np.float32)

    def emit_rows(self, image, block, first, rows) -> None:
        """Output rows first .. first + rows of one channel block."""
        width = self.geometry.out_width
        tile = min(8, width)
        tiles, start = self.tiles(width, tile)
        per_channel = self.epilogue.per_channel(image, block)
        with T.serial(rows) as y, T.serial(tiles) as i:
            x = start(i)
            acc = Registers(tile, self.acc_dtype)
            bias = let(load(self.bias, block * LANES))
            for p in range(tile):
                acc[p] = bias
            self._accumulate(acc, block, y, x, tile)
            for p in range(tile):
                value = acc[p]
                index, pixel = self.out_index(image, block, first + y, x + p)
                value = convert(value, "float32") if self.integer else value
                store(self.out, index, self.epilogue.emit(per_channel, index, pixel, value))

    def _accumulate(self, acc, block, y, x, tile: int) -> None:
        spec, g = self.spec, self.geometry
        (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.strides, spec.dilation
        unroll = kh * kw <= 25

        def tap(i, j) -> None:
            weight = load(self.weight, ((block * kh + i) * kw + j) * LANES)
            weight = let(convert(weight, "int32") if self.integer else weight)
            pixel = (y * sh + i * dh) * g.pitch + g.row_start + x * sw + j * dw
            for p in range(tile):
                value, old = load(self.padded, (pixel + p * sw) * LANES), acc[p]
                acc[p] = old + convert(value, "int32") * weight if self.integer else fma(value, weight, old)

        if unroll:
            for i in range(kh):
                for j in range(kw):
                    tap(i, j)
        else:
            with T.serial(kh) as i, T.serial(kw) as j:
                tap(i, j)

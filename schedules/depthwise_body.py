"""What all depthwise kernels share: sizes, tasks, the padded copy of the rows a task needs, tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from tvm_int8.specs import LANES, Conv2d, Kernel

from .epilogue import Epilogue
from .rule import Constants, pad_channels
from .shuffle import PIXELS, each_pixel
from .vector import KernelBuilder, const, let, load, scratch, store

SLACK = 2 * PIXELS  # pixels a vector may read behind the last row


@dataclass(frozen=True)
class Geometry:
    """Sizes of a depthwise convolution, derived once."""

    spec: Conv2d

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self.spec.result.shape[2]

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self.spec.result.shape[3]

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns one output's window covers."""
        (kh, kw), (dh, dw) = self.spec.kernel, self.spec.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def padded_width(self) -> int:
        """Columns of a padded row that are read."""
        return (self.out_width - 1) * self.spec.strides[1] + self.span[1]

    @property
    def row_start(self) -> int:
        """Pixels left free in front of a padded row, so that what is copied starts at a multiple of 64 bytes."""
        return -self.spec.padding[1] % PIXELS

    @property
    def pitch(self) -> int:
        """Pixels from one padded row to the next, a multiple of 64 bytes."""
        return -(-(self.row_start + self.padded_width) // PIXELS) * PIXELS

    def rows_in(self, rows_out):
        """Input rows that `rows_out` output rows need (an int or an expression)."""
        return (rows_out - 1) * self.spec.strides[0] + self.span[0]

    def interleavings(self, rows_out: int) -> list[list[tuple[int, int]]]:
        """Per input row of a block of output rows: the (output row, kernel row) pairs that read it."""
        (kh, _), (sh, _), (dh, _) = self.spec.kernel, self.spec.strides, self.spec.dilation
        readers: list[list[tuple[int, int]]] = [[] for _ in range(self.rows_in(rows_out))]
        for y in range(rows_out):
            for i in range(kh):
                readers[y * sh + i * dh].append((y, i))
        return readers


def pad_channels_last(array: np.ndarray) -> np.ndarray:
    """Zeros behind the last axis, up to a multiple of 16."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % LANES)))


class Body:
    """What both bodies share: parameters, tasks, the padded copy, the row and column tiles."""

    @property
    def form(self) -> str:
        """The multiply-adds, for the kernel's name."""
        raise NotImplementedError

    def packed_weight(self, weight: np.ndarray) -> np.ndarray:
        """Weights as the body reads them."""
        raise NotImplementedError

    def emit_rows(self, image, block, first, rows) -> None:
        """Output rows `first` .. `first + rows` of a channel block, from the padded copy."""
        raise NotImplementedError

    def __init__(self, spec: Conv2d, constants: Constants, knobs: dict):
        self.spec, self.constants = spec, constants
        self.geometry = Geometry(spec)
        self.knobs = knobs
        self.integer = spec.inputs[0].dtype == "uint8"
        self.acc_dtype = "int32" if self.integer else "float32"
        self.epilogue = Epilogue(spec, constants)

    def per_channel_arrays(self) -> list[np.ndarray]:
        """Bias and channel operands, as the body reads them."""
        bias = self.constants.bias
        bias = np.zeros(self.spec.result.shape[1], self.acc_dtype) if bias is None else np.asarray(bias, self.acc_dtype)
        return [pad_channels(bias), *self.epilogue.channel_arrays()]

    def pad_array(self) -> list[np.ndarray]:
        """[CB, 4 equal pixels, 16]: what padding holds where every channel has its own zero point; else nothing."""
        if self.spec.pad_value is not None:
            return []
        blocks = pad_channels(np.asarray(self.constants.pad, np.uint8)).reshape(-1, 1, LANES)
        return [np.repeat(blocks, PIXELS, axis=1)]

    def build(self) -> Kernel:
        """The kernel: data, tensor operands, weight, bias, channel operands, zero points of padding, output."""
        weight, pad = self.packed_weight(self.constants.weight), self.pad_array()
        bias, *channels = self.per_channel_arrays()
        tensors = self.epilogue.tensor_parameters()
        with KernelBuilder(self.name()) as k:
            self.data, *rest = k.arguments(
                ("data", self.spec.inputs[0].physical_shape, self.spec.inputs[0].dtype),
                *tensors,
                ("weight", weight.shape, str(weight.dtype)),
                ("bias", bias.shape, self.acc_dtype),
                *((f"channel{i}", array.shape, "float32") for i, array in enumerate(channels)),
                *(("pad", array.shape, "uint8") for array in pad),
                ("out", self.spec.result.physical_shape, self.spec.result.dtype),
            )
            self.tensors, rest = rest[: len(tensors)], rest[len(tensors) :]
            self.weight, self.bias, *rest, self.out = rest
            self.channels, self.pad = rest[: len(channels)], rest[len(channels) :]
            self.epilogue.bind(self.tensors, self.channels)
            self._emit()
        constants = (weight, bias, *channels, *pad)
        return Kernel(k.func, constants, k.name, self.knobs, pack_weight=self.packed_weight)

    def name(self) -> str:
        """depthwise_conv2d_<form>_<kernel>_<strides>."""
        (kh, kw), (sh, sw) = self.spec.kernel, self.spec.strides
        return f"depthwise_conv2d_{self.form}_{kh}x{kw}_s{sh}x{sw}"

    def _emit(self) -> None:
        g, chunks, blocks = self.geometry, self.knobs["chunks"], self.spec.result.channel_blocks
        longest = -(-g.out_height // chunks)
        with T.parallel(self.spec.result.shape[0] * blocks * chunks) as task:
            plane, chunk = let(task // chunks), task % chunks
            first, rows = let(chunk * g.out_height // chunks), longest
            if g.out_height % chunks:
                rows = let((chunk + 1) * g.out_height // chunks - first)
            pixels = g.rows_in(longest) * g.pitch + SLACK
            self.padded = scratch(pixels * LANES, self.spec.inputs[0].dtype)
            self._copy_rows(plane, first, rows)
            self.emit_rows(plane // blocks, plane % blocks, first, rows)

    def _copy_rows(self, plane, first, rows) -> None:
        """Input rows of a task into `self.padded`, padding included."""
        g, (top, left, _, _) = self.geometry, self.spec.padding
        _, _, height, width = self.spec.inputs[0].shape
        copied = max(0, min(width, g.padded_width - left))
        with T.serial(g.rows_in(rows)) as row:
            source, base = let(first * self.spec.strides[0] + row - top), row * g.pitch + g.row_start
            with T.If(T.And(source >= 0, source < height)):
                with T.Then():
                    self._fill(plane, base, min(left, g.padded_width))
                    from_pixel = (plane * height + source) * width
                    self._copy(base + left, from_pixel, copied)
                    self._fill(plane, base + left + copied, g.padded_width - left - copied)
                with T.Else():
                    self._fill(plane, base, g.padded_width)

    def _fill(self, plane, pixel, count: int) -> None:
        dtype, block = self.spec.inputs[0].dtype, plane % self.spec.result.channel_blocks

        def zeros(lanes):
            if self.pad:
                return load(self.pad[0], block * (PIXELS * LANES), lanes)
            return const(self.spec.pad_value, dtype, lanes)

        def one(i, lanes):
            store(self.padded, (pixel + i) * LANES, zeros(lanes), lanes)

        each_pixel(count, PIXELS, one)

    def _copy(self, pixel, from_pixel, count: int) -> None:
        def one(i, lanes):
            store(self.padded, (pixel + i) * LANES, load(self.data, (from_pixel + i) * LANES, lanes), lanes)

        each_pixel(count, PIXELS, one)

    def tiles(self, total, size: int):
        """(number of tiles, first element of tile i): the last tile moves back so that it ends at `total`."""
        count = (total + size - 1) // size
        if isinstance(total, int) and total % size == 0:
            return count, lambda i: i * size
        return count, lambda i: let(T.min(i * size, total - size))

    def out_index(self, image, block, y, x):
        """(flat element index of the output, flat pixel of [N, H, W])."""
        g = self.geometry
        inside = y * g.out_width + x
        area = g.out_height * g.out_width
        return ((image * self.spec.result.channel_blocks + block) * area + inside) * LANES, image * area + inside

"""A workload: what of a convolution or dense layer decides how fast its knobs are; the key of tuning logs.

The epilogue is no part of it, so that records survive when passes fuse something else, and networks share them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_int8 import winograd
from tvm_int8.specs import LANES, Conv2d, Operand, Output, Program, Spec, Tensor, WinogradConv2d

OPS = ("conv2d", "winograd_conv2d", "depthwise_conv2d", "conv2d_transpose", "dense")
_WEIGHT_DTYPES = {"uint8": "int8", "float32": "float32"}
_OUT_DTYPES = ("uint8", "float32")
_ZERO_POINT = 3  # of made-up data: padding is not zero
_TILED = {"tile", "wide"}
_SHORT = {"uint8": "u8", "int8": "s8", "float32": "f32"}


@dataclass(frozen=True)
class Workload:
    """One convolution or dense layer, on a number of threads.

    Parameters
    ----------
    op : str
        One of `OPS`; follows from the rest, for readers.
    data, out : tuple of int
        Logical NCHW shapes; a dense layer is a 1x1 convolution of a 1x1 map.
    kernel, strides, dilation : tuple of int
        Rows, columns.
    padding : tuple of int
        Top, left, bottom, right.
    groups : int
    block : int
        Channels per block of the data's layout: 16, or 4 for images.
    dtypes : tuple of str
        Data, weight, result.
    threads : int
        That the kernel runs on.
    tile : tuple of int, optional
        Rows and columns of outputs of a Winograd convolution's tile.
    wide : int
        Its positions in 16 bits.
    """

    op: str
    data: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    block: int
    dtypes: tuple[str, str, str]
    threads: int
    tile: tuple[int, int] | None = None
    wide: int = 0

    @staticmethod
    def of(spec: Spec, threads: int) -> Workload | None:
        """Return the workload of a kernel's order; None for kinds of kernels that have no knobs."""
        if not isinstance(spec, Conv2d):
            return None
        data, out = spec.inputs[0], spec.result
        dtypes = (data.dtype, _WEIGHT_DTYPES[data.dtype], out.dtype)
        sizes = (spec.kernel, spec.strides, spec.padding, spec.dilation, spec.groups, data.block)
        tiled = (spec.tile, len(spec.wide)) if isinstance(spec, WinogradConv2d) else ()
        return Workload(_op_of(spec), data.shape, out.shape, *sizes, dtypes, threads, *tiled)

    def spec(self) -> Conv2d:
        """Return an order for this workload with a plain epilogue: requantised for integers, as it is for float32."""
        integer = self.dtypes[0] == "uint8"
        acc = Operand("acc", "int32" if integer and self.tile is None else "float32")
        program = Program((acc, Operand("channel")), (("mul", "%0", "%1"),)) if integer else Program((acc,))
        output = Output("float32") if self.dtypes[2] == "float32" else Output("uint8", 0, 0, 255)
        geometry: dict[str, Any] = {
            "kernel": self.kernel,
            "strides": self.strides,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "pad_value": _ZERO_POINT if integer else 0,
            "transposed": self.op == "conv2d_transpose",
        }
        data, out = (Tensor(self.data, self.dtypes[0], self.block),), Tensor(self.out, self.dtypes[2])
        if self.tile is None:
            return Conv2d(str(self), data, out, program, output, **geometry)
        wide = tuple(range(self.wide))  # which ones makes no difference to time
        return WinogradConv2d(str(self), data, out, program, output, **geometry, tile=self.tile, wide=wide)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape of the weight: OIHW, IOHW where transposed."""
        rows, columns = (self.data[1], self.out[1]) if self.op == "conv2d_transpose" else (self.out[1], self.data[1])
        return rows, columns // self.groups, *self.kernel

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        fields = dataclasses.asdict(self)
        if self.tile is None:
            fields = {name: value for name, value in fields.items() if name not in _TILED}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Workload:
        """Read what `to_dict` wrote.

        Raises
        ------
        ValueError
            Something else; the message says what.
        """
        if not isinstance(fields, Mapping):
            raise ValueError("a workload is an object")
        expected = {field.name for field in dataclasses.fields(cls)} - (set() if "tile" in fields else _TILED)
        if set(fields) != expected:
            wrong = sorted(set(fields) ^ expected)
            raise ValueError(f"fields of a workload missing or unknown: {', '.join(map(str, wrong))}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        lengths = {"data": 4, "out": 4, "kernel": 2, "strides": 2, "padding": 4, "dilation": 2}
        for name, length in lengths.items():
            if not _are_counts(values[name], length, least=0 if name == "padding" else 1):
                raise ValueError(f"workload's {name} is {fields[name]!r}, expected {length} counts")
        if "tile" in fields and not (_are_counts(values["tile"], 2, 1) and {*values["tile"]} <= {*winograd.OUTPUTS}):
            raise ValueError(f"workload's tile is {fields['tile']!r}, expected two of {winograd.OUTPUTS}")
        if "tile" in fields and not _are_counts((values["wide"],), 1, 0):
            raise ValueError(f"workload's wide is {fields['wide']!r}, expected a count")
        for name in ("groups", "block", "threads"):
            if not _are_counts((values[name],), 1, 1):
                raise ValueError(f"workload's {name} is {fields[name]!r}, expected a count")
        dtypes = values["dtypes"]
        texts = isinstance(dtypes, tuple) and len(dtypes) == 3 and all(isinstance(d, str) for d in dtypes)
        if not texts or _WEIGHT_DTYPES.get(dtypes[0]) != dtypes[1] or dtypes[2] not in _OUT_DTYPES:
            three = "three: uint8 and int8, or float32 twice, then uint8 or float32"
            raise ValueError(f"workload's dtypes are {fields['dtypes']!r}, expected {three}")
        workload = cls(**values)
        if workload.op not in OPS or workload.block not in (4, LANES):
            raise ValueError(f"no workload: op {workload.op!r}, block {workload.block}")
        channels = workload.data[1], workload.out[1]
        if any(count % workload.groups for count in channels) or _op_of(workload.spec()) != workload.op:
            raise ValueError(f"no workload: op {workload.op!r} does not fit its shapes and groups")
        if not workload._sizes_fit():
            raise ValueError(f"no workload: {workload.data} does not become {workload.out} with this window")
        return workload

    def _sizes_fit(self) -> bool:
        """Whether the result has the size that data, window and padding give it."""
        if self.out[0] != self.data[0]:
            return False
        for i in (0, 1):
            reach, padding = self.dilation[i] * (self.kernel[i] - 1) + 1, self.padding[i] + self.padding[2 + i]
            size, out, stride = self.data[2 + i], self.out[2 + i], self.strides[i]
            if self.op == "conv2d_transpose":
                fits = 0 <= out - ((size - 1) * stride + reach - padding) < max(stride, self.dilation[i])
            else:
                fits = out == (size + padding - reach) // stride + 1
            if not fits:
                return False
        return True

    def __str__(self) -> str:
        shapes = "x".join(map(str, self.data)), "x".join(map(str, self.weight))
        tile = "" if self.tile is None else f"_{self.tile[0]}x{self.tile[1]}" + (f"w{self.wide}" if self.wide else "")
        text = f"{self.op}{tile} {shapes[0]} * {shapes[1]}"
        if self.strides != (1, 1):
            text += " /" + "x".join(map(str, self.strides))
        if any(self.padding):
            text += " pad " + ",".join(map(str, self.padding))
        if self.dilation != (1, 1):
            text += " dilation " + "x".join(map(str, self.dilation))
        if self.groups > 1 and self.op != "depthwise_conv2d":
            text += f" groups {self.groups}"
        return f"{text} {_SHORT[self.dtypes[0]]}->{_SHORT[self.dtypes[2]]} {self.threads}t"


def _op_of(spec: Conv2d) -> str:
    if isinstance(spec, WinogradConv2d):
        return "winograd_conv2d"
    if spec.transposed:
        return "conv2d_transpose"
    if spec.depthwise:
        return "depthwise_conv2d"
    return "dense" if spec.inputs[0].shape[2:] == (1, 1) else "conv2d"


def _are_counts(values: Any, length: int, least: int) -> bool:
    numbers = isinstance(values, tuple) and len(values) == length
    return numbers and all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)

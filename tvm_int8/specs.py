"""What a kernel computes: the vocabulary in which passes order kernels and schedules deliver them.

A `Program` is the float32 epilogue of a kernel (or all of it, for element-wise kernels): a straight line of steps over
operands.  Slots are numbered, operands first; a step's arguments are slots ("%0") or numbers; the last step is the
result.  `conv + residual + relu` reads

    operands  %0 acc   %1 channel(scale)   %2 tensor(uint8, zero_point=3)
    steps     %3 = mul %2 0.5       %4 = fma %0 %1 %3       %5 = max %4 0.0
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

LANES = 16  # channels in one block of the packed layout, int32/float32 lanes of one zmm register


@dataclass(frozen=True)
class Tensor:
    """An activation: logical NCHW shape, dtype and channel block (0: plain, else NCHW{block}c).

    A plain [N, C] tensor has the logical shape [N, C, 1, 1] and `rank` 2.
    """

    shape: tuple[int, int, int, int]
    dtype: str
    block: int = LANES
    rank: int = 4

    @property
    def channel_blocks(self) -> int:
        """Blocks that hold the channels, the last one padded."""
        return -(-self.shape[1] // self.block)

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """The shape in memory."""
        if not self.block:
            return self.shape[: self.rank]
        n, _, h, w = self.shape
        return (n, self.channel_blocks, h, w, self.block)


@dataclass(frozen=True)
class Operand:
    """One input of a program.

    kind : "acc" (the kernel's own accumulator), "tensor" (same shape as the output), "channel" (float32 constant [C]),
        "vector" (tensor [N, C, 1, 1], broadcast over pixels), "map" (tensor [N, 1, H, W], broadcast over channels).
    dtype : what is in memory; an integer enters the program as float32(q - zero_point).
    """

    kind: str
    dtype: str = "float32"
    zero_point: int = 0


@dataclass(frozen=True)
class Program:
    """Straight-line float32 code: operands, then steps (op, *arguments)."""

    operands: tuple[Operand, ...]
    steps: tuple[tuple, ...] = ()

    @property
    def result(self) -> str:
        """The slot of the last step."""
        return f"%{len(self.operands) + len(self.steps) - 1}"


@dataclass(frozen=True)
class Output:
    """How a program's result is stored: clamped to [low, high], rounded when dtype is an integer, zero point added."""

    dtype: str
    zero_point: int = 0
    low: float = -math.inf
    high: float = math.inf

    @property
    def clamps(self) -> bool:
        """Whether there is a bound."""
        return self.low != -math.inf or self.high != math.inf


@dataclass(frozen=True)
class Spec:
    """Base of all kernel orders; `layer` is the name reports use."""

    layer: str
    inputs: tuple[Tensor, ...]
    result: Tensor
    program: Program
    output: Output

    @property
    def can_be_plain(self) -> bool:
        """Whether a kernel exists that reads its one input packed and delivers plain NCHW."""
        return False

    def to_json(self) -> str:
        """Text that `from_json` reads; equal for equal specs."""
        return json.dumps({"kind": type(self).__name__, **_plain(self)}, sort_keys=True)


def _plain(value):
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def from_json(text: str) -> Spec:
    """The spec that `Spec.to_json` wrote."""
    values = json.loads(text)
    kinds = (
        Conv2d,
        WinogradConv2d,
        Pool2d,
        Lrn,
        Elementwise,
        ChannelGather,
        Resize2d,
        DepthToSpace,
        ChannelsLast,
        Window2d,
    )
    kind = {cls.__name__: cls for cls in kinds}[values.pop("kind")]
    known = {f.name for f in fields(kind)}
    assert set(values) <= known
    values["inputs"] = tuple(_tensor(t) for t in values["inputs"])
    values["result"] = _tensor(values["result"])
    program = values["program"]
    values["program"] = Program(
        tuple(Operand(**o) for o in program["operands"]), tuple(tuple(s) for s in program["steps"])
    )
    values["output"] = Output(**values["output"])
    return kind(**{name: _tupled(value) for name, value in values.items()})


def _tensor(values: dict) -> Tensor:
    return Tensor(tuple(values["shape"]), values["dtype"], values["block"], values["rank"])


def _tupled(value):
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Conv2d(Spec):
    """conv2d of inputs[0] with a constant weight OIHW; transposed convolution when `transposed` (weight IOHW).

    Accumulators are int32 for uint8 data and start from the int32 bias operand (zero-point correction included); they
    are float32 for float32 data and start from the float32 bias.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    pad_value: int | None = 0  # zero point of the data; None: one per channel, the constant "pad"
    transposed: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether every output channel reads its own input channel and no other."""
        return (
            not self.transposed and self.groups > 1 and self.groups == self.inputs[0].shape[1] == self.result.shape[1]
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        n, c, h, w = self.inputs[0].shape if self.transposed else self.result.shape
        other = (self.result if self.transposed else self.inputs[0]).shape[1]
        return n * c * h * w * (other // self.groups) * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class WinogradConv2d(Conv2d):
    """A 3x3 convolution of stride 1 by products of transformed tiles (see `tvm_int8.winograd`).

    tile : outputs of a tile, (rows, columns), each of `winograd.OUTPUTS`
    wide : positions in a transformed tile (row by row) whose products are of int16; the others, which are *narrow*,
        have products of int8

    For u8 data the zero point, `pad_value`, is subtracted first.  Transformed data of narrow positions are multiplied
    by "input_scale" int16 [narrow positions, C], a fraction of 2**15, and then by one multiplier for all of a tile,
    which takes the largest of them to 127 (`winograd.tile_multiplier`); outputs are divided by it.  Further constants:
    "weight" int8 [narrow positions, O, C] and "wide_weight" int16 [wide positions, O, C], transformed; "output_scale"
    float32 [positions, O], which takes sums of products to the accumulators of a Conv2d; "bias" float32.  For float32
    data: "weight" float32 [positions, O, C] and "bias".

    The program's accumulator is float32.
    """

    tile: tuple[int, int] = (4, 4)
    wide: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pool2d(Spec):
    """mode "max" or "avg"; the accumulator is the window's maximum, or its sum, of q - zero_point, as float32.

    For "avg" the program's operand 0 is sum * (1 / count), the reciprocal rounded to float32 first
    (`reference.pool2d.reciprocals`), with count the number of contributing elements: window elements inside the tensor,
    with `count_include_pad` also those in `padding`.  Windows may reach behind the padding (ceil mode); nothing there
    counts.  For "max" nothing outside the tensor wins: it is 0 for uint8, -inf for float32.
    """

    mode: str = "max"
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = False
    zero_point: int = 0


@dataclass(frozen=True)
class Lrn(Spec):
    """Local response normalisation across channels, of v = q - zero_point as float32.

    The program's operand 0 is

        v[c] / (bias + alpha / size * sum of v[c - before .. c - before + size - 1] ** 2) ** beta

    Channels outside of the tensor count nothing.  `alpha` is in the units of v: the data's scale squared is in it.
    """

    size: int = 5
    before: int = 2
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class Elementwise(Spec):
    """The program alone, over operands of kind tensor / channel / vector / map (no acc).

    `inputs` lists the tensors in the order of the program's non-channel operands.  The output may have another block
    than the inputs (block 0 -> 16 packs, 16 -> 0 unpacks, 0 -> 4 packs an image), so quantize, dequantize and layout
    changes are Elementwise too.
    """


NOTHING = (-1, 0)  # a source that is no channel of any input


@dataclass(frozen=True)
class ChannelGather(Spec):
    """Output channel c is channel `source[c][1]` of inputs[source[c][0]]: concat, split, slice, shuffle, in one.

    A source of `NOTHING` is real zero: `output.zero_point`.

    One multiplier and zero point per input (`scales`, `zero_points`): inputs already in the output's scale are copied
    as bytes, others are stored as rint((q - zero_point) * scale) + output.zero_point.  The program is empty.
    """

    source: tuple[tuple[int, int], ...] = ()
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resize2d(Spec):
    """method "nearest" or "linear"; source rows and columns are given by tables computed when compiling.

    nearest: out[y, x] = in[rows[y][0], cols[x][0]].  linear: rows and cols hold (low, high, weight of high); the
    accumulator is the bilinear blend of q - zero_point in float32 (rows first, then columns), entering the program as
    operand 0.
    """

    method: str = "nearest"
    rows: tuple[tuple[int, int, float], ...] = ()
    cols: tuple[tuple[int, int, float], ...] = ()
    zero_point: int = 0

    @property
    def can_be_plain(self) -> bool:
        """float32, from nothing but the data."""
        return self.result.dtype == "float32" and len(self.inputs) == 1


@dataclass(frozen=True)
class DepthToSpace(Spec):
    """Every `factor` x `factor` channels are the pixels of one channel: adjacent ones, or ones a stride of C apart."""

    factor: int = 2
    adjacent: bool = True

    def source_channel(self, channel: int, place: int) -> int:
        """The channel that holds pixel `place` (row by row) of a channel's squares."""
        return channel * self.factor**2 + place if self.adjacent else place * self.result.shape[1] + channel

    @property
    def can_be_plain(self) -> bool:
        """Few channels: the kernel holds those of sixteen pixels in registers."""
        return self.inputs[0].shape[1] <= 4 * LANES and self.factor <= 4


@dataclass(frozen=True)
class ChannelsLast(Spec):
    """The data's transpose to NHWC, plain: `result.shape` is (N, H, W, C)."""


@dataclass(frozen=True)
class Window2d(Spec):
    """Spatial slice and pad: out[y, x] = in[y * step_y + start_y, x * step_x + start_x], `pad_value` outside.

    A `pad_value` of None is one per channel, the constant "pad".
    """

    start: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)
    pad_value: float | None = 0.0


@dataclass(frozen=True)
class Kernel:
    """A delivered kernel: the scheduled PrimFunc, its packed constants, and what the report says about it.

    `pack_weight` makes `constants[0]` of the spec's weight, or of any other one of its shape, where it is but arranged.
    """

    func: Any
    constants: tuple = ()
    name: str = ""
    knobs: dict = field(default_factory=dict)
    origin: str = "heuristic"
    pack_weight: Callable[[np.ndarray], np.ndarray] | None = field(default=None, compare=False)

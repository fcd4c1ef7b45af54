"""AssignLayouts: every tensor gets its place in memory, conversions included.

    kernel(x[N, C, H, W]) -> kernel            ->   kernel(x[N, C/16, H, W, 16]) -> kernel
    kernel -> softmax (an island)              ->   kernel -> unpack -> softmax[N, C]
    resize of float32 -> output                ->   resize that writes [N, C, H, W]
    quantize(image[N, 3, H, W]) -> conv2d      ->   quantize and pack to [N, 1, H, W, 4] in one kernel -> conv2d
    pad by channel(image of bytes) -> conv2d   ->   pad and pack in one kernel -> conv2d

Kernels hold NCHW16c (images of up to four channels NHW4c), model inputs, outputs and islands plain NCHW.  Element-wise
kernels change the layout on the way where they stand between the two, so a conversion of its own is rare.

Requires   OrderKernels.
Ensures    the shapes of kernel orders are physical; reshapes that only add or drop dimensions of size one have
           disappeared.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, kernel_call, spec_of, stored_of, tensor_of
from tvm_int8.specs import LANES, ChannelsLast, Conv2d, Elementwise, Operand, Output, Program, Spec, Tensor, Window2d

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, dtype_of, shape_of, vars_in
from .groups import is_view, logical_shape
from .observe import PACKED_OUTPUTS

IMAGE = 4  # channel block of images with up to four channels
PLAIN = 0


@tvm.transform.module_pass(opt_level=0, name="AssignLayouts")
class AssignLayouts:
    """Give every tensor a layout and insert the conversions."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with physical shapes."""
        return rebuild(mod, _Layouts(Dataflow(mod)))


class _Layouts:
    changes_types = True  # operators meet packed operands before these are converted

    def __init__(self, flow: Dataflow):
        self.flow = flow
        attrs = flow.function.attrs
        plain = int(attrs[PACKED_OUTPUTS]) if attrs and PACKED_OUTPUTS in attrs else len(flow.outputs)
        self.plain_outputs = set(flow.outputs[:plain])
        self.block: dict[str, int] = {}  # name of a new variable -> its channel block, PLAIN when absent
        self.shape: dict[str, tuple] = {}  # name of a packed variable -> its logical shape
        self.converted: dict[tuple[str, int], Expr] = {}

    def __call__(self, binding, value: Expr, new: Rebuilder) -> Expr | None:
        if is_kernel(value):
            return self._kernel(binding, value, new)
        packed = is_view(binding.value) and isinstance(value.args[0], Var) and value.args[0].name in self.block
        if packed and not self.flow.is_output(binding.var):
            return value.args[0]
        arguments = [self._plain(arg, new) for arg in value.args] if isinstance(value, relax.Call) else None
        if arguments is None:
            return None
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)

    def _plain(self, expr: Expr, new: Rebuilder) -> Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._plain(field, new) for field in expr.fields])
        if isinstance(expr, Var) and expr.name in self.block:
            return self._as_block(expr, PLAIN, new)
        return expr

    def _kernel(self, binding, call: relax.Call, new: Rebuilder) -> Expr:
        spec, inputs, var = spec_of(call), inputs_of(call), binding.var
        wanted_out = self._preferred(var)
        if isinstance(spec, Elementwise):
            block = self._elementwise_block(spec, inputs)
            blocks, out = [block] * len(inputs), wanted_out
            if block == LANES and out == IMAGE:
                out = LANES
            elif block == PLAIN and out != PLAIN and len(inputs) > 1:
                blocks, out = [LANES] * len(inputs), LANES
            elif block == IMAGE:
                out = IMAGE
        elif isinstance(spec, Window2d) and spec.pad_value is None:
            blocks, out = [PLAIN], IMAGE
        elif isinstance(spec, ChannelsLast) or (wanted_out == PLAIN and spec.can_be_plain):
            blocks, out = [LANES], PLAIN
        else:
            image = isinstance(spec, Conv2d) and self._reads_image(spec, binding.value, inputs[0])
            blocks, out = [IMAGE if image else LANES, *[LANES] * (len(inputs) - 1)], LANES
        inputs = [self._as_block(e, b, new, t.shape) for e, b, t in zip(inputs, blocks, spec.inputs, strict=True)]
        spec = replace(
            spec,
            inputs=tuple(_placed(t, b, e) for t, b, e in zip(spec.inputs, blocks, inputs, strict=True)),
            result=_placed(spec.result, out, var),
        )
        shape = spec.result.physical_shape if out else shape_of(var)
        result = kernel_call(spec, inputs, constants_of(call), tensor_of(call), shape, stored_of(call))
        if out == PLAIN:
            return result
        if var in self.plain_outputs:
            packed = new.emit(result, f"{var.name}_packed")
            self._record(packed, out, spec.result.shape)
            plain = _converter(spec.layer, spec.result, PLAIN, packed, tensor_of(call), shape_of(var), stored_of(call))
            self.converted[var.name, out] = packed
            return plain
        self.block[var.name], self.shape[var.name] = out, spec.result.shape
        return result

    def _reads_image(self, spec: Conv2d, call: relax.Call, data: Expr) -> bool:
        """Whether a convolution finds its data packed as an image, or can have it packed so."""
        if data.name in self.block:
            return self.block[data.name] == IMAGE
        return (data.name, LANES) not in self.converted and _wanted(spec, call, inputs_of(call)[0]) == IMAGE

    def _record(self, var: Var, block: int, shape) -> None:
        self.block[var.name], self.shape[var.name] = block, shape

    def _elementwise_block(self, spec: Elementwise, inputs) -> int:
        """The block its inputs are read in: packed when any of them is, or when one is broadcast."""
        found = {self._cheapest_block(e) if isinstance(e, Var) else PLAIN for e in inputs}
        if LANES in found or any(o.kind in ("vector", "map") for o in spec.program.operands):
            return LANES
        return IMAGE if IMAGE in found else PLAIN

    def _cheapest_block(self, var: Var) -> int:
        """What a variable is stored in; packed when it is stored twice, for the network's caller and for kernels."""
        return LANES if (var.name, LANES) in self.converted else self.block.get(var.name, PLAIN)

    def _preferred(self, var: Var) -> int:
        """Where the consumers want a tensor."""
        votes = set()
        stack = list(self.flow.consumers[var])
        if var in self.plain_outputs:
            votes.add(PLAIN)
        while stack:
            binding = stack.pop()
            if is_kernel(binding.value):
                votes.add(_wanted(spec_of(binding.value), binding.value, var))
            elif is_view(binding.value):
                stack.extend(self.flow.consumers[binding.var])
                votes |= {PLAIN} if self.flow.is_output(binding.var) else set()
            else:
                votes.add(PLAIN)
        if votes == {IMAGE} or votes == {PLAIN}:
            return votes.pop()
        return LANES

    def _as_block(self, expr: Expr, block: int, new: Rebuilder, shape=None) -> Expr:
        """`expr` in the wanted layout: as it is, converted once, or packed now when it is a constant."""
        value = const_value(expr)
        if value is not None:
            return relax.const(pack(value.reshape(shape), block)) if block else expr
        current = self.block.get(expr.name, PLAIN)
        if current == block:
            return expr
        key = (expr.name, block)
        if key not in self.converted:
            logical = self.shape.get(expr.name) or logical_shape(shape_of(expr))
            source = _placed(Tensor(logical, dtype_of(expr)), current, expr)
            shape = replace(source, block=block).physical_shape if block else self._plain_shape(expr, logical)
            call = _converter(f"layout of {expr.name}", source, block, expr, expr.name, shape)
            self.converted[key] = new.emit(call, f"{expr.name}_nchw{f'{block}c' if block else ''}")
            if block:
                self._record(self.converted[key], block, logical)
        return self.converted[key]

    def _plain_shape(self, expr: Var, logical):
        for var in (*self.flow.params, *self.flow.producer):
            if var.name == expr.name:
                return shape_of(var)
        return logical


def _placed(tensor: Tensor, block: int, expr: Expr) -> Tensor:
    """`tensor` in a layout; a plain one has the rank of the expression that holds it."""
    return replace(tensor, block=block, rank=4 if block else len(shape_of(expr)))


def _wanted(spec: Spec, call: relax.Call, var: Var) -> int:
    if isinstance(spec, Window2d) and spec.pad_value is None:
        return PLAIN
    if isinstance(spec, Conv2d) and not spec.transposed and spec.groups == 1:
        image = spec.inputs[0].shape[1] <= IMAGE and spec.inputs[0].shape[2:] != (1, 1)
        if image and all(v is not var for v in list(vars_in(call))[1:]):
            return IMAGE
    return LANES


def _converter(layer: str, source: Tensor, block: int, expr: Expr, tensor: str, shape, stored=None) -> relax.Call:
    """An element-wise kernel that changes the layout and nothing else."""
    dtype = source.dtype
    info = None if dtype == "float32" else np.iinfo(dtype)
    output = Output(dtype) if info is None else Output(dtype, 0, info.min, info.max)
    result = replace(source, block=block, rank=4 if block else len(shape))
    spec = Elementwise(layer, (source,), result, Program((Operand("tensor", dtype),)), output)
    return kernel_call(spec, [expr], [], tensor, shape, stored)


def pack(array: np.ndarray, block: int = LANES) -> np.ndarray:
    """[N, C, H, W] -> [N, ceil(C / block), H, W, block], zeros in the padding lanes."""
    n, c, h, w = array.shape
    padded = np.pad(array, ((0, 0), (0, -c % block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2))


def unpack(array: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The inverse of `pack`: physical [N, CB, H, W, block] (any shape of that size) -> [N, C, H, W]."""
    n, c, h, w = shape
    block = array.size // math.prod((n, h, w))
    lanes = array.shape[-1]
    return array.reshape(n, block // lanes, h, w, lanes).transpose(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]

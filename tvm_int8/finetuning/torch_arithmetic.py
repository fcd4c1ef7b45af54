"""Element-wise arithmetic, reductions, products of matrices and operators that move data, as PyTorch computes them.

Tensors may hold another number of samples than the module says: the first axis of what is computed from an input.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from tvm import relax

from tvm_int8.passes.expressions import dtype_of, op_name, shape_of

from .torch_registry import ints, relax_op, torch_dtype

_SAME = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div, "power": torch.pow,
    "maximum": torch.maximum, "minimum": torch.minimum, "abs": torch.abs, "ceil": torch.ceil, "cos": torch.cos,
    "erf": torch.erf, "exp": torch.exp, "floor": torch.floor, "log": torch.log, "negative": torch.neg,
    "round": torch.round, "rsqrt": torch.rsqrt, "sigmoid": torch.sigmoid, "sign": torch.sign, "sin": torch.sin,
    "sqrt": torch.sqrt, "square": torch.square, "tanh": torch.tanh, "trunc": torch.trunc, "nn.relu": torch.relu,
    "nn.silu": functional.silu, "nn.gelu": functional.gelu, "equal": torch.eq, "not_equal": torch.ne,
    "less": torch.lt, "less_equal": torch.le, "greater": torch.gt, "greater_equal": torch.ge, "where": torch.where,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not, "matmul": torch.matmul,
}  # fmt: skip
_REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}


def _rule(compute):
    return lambda call, *operands: compute(*operands)


for _name, _compute in _SAME.items():
    relax_op(_name)(_rule(_compute))


@relax_op("nn.gelu_tanh")
def gelu_tanh(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Gelu by its tanh formula."""
    return functional.gelu(x, approximate="tanh")


@relax_op("nn.softplus")
def softplus(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Linear above a threshold."""
    return functional.softplus(x, float(call.attrs.beta), float(call.attrs.threshold))


@relax_op("nn.leakyrelu")
def leaky_relu(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """One slope for all."""
    return functional.leaky_relu(x, float(call.attrs.alpha))


@relax_op("nn.prelu")
def prelu(call: relax.Call, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A slope per channel."""
    axis = int(call.attrs.axis) % x.dim()
    return torch.where(x >= 0, x, x * slope.reshape(-1, *[1] * (x.dim() - 1 - axis)))


@relax_op("clip")
def clip(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Between two numbers."""
    return x.clamp(float(call.args[1].value), float(call.args[2].value))


@relax_op("nn.softmax", "nn.log_softmax")
def softmax(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Along one axis."""
    compute = torch.softmax if op_name(call) == "nn.softmax" else torch.log_softmax
    return compute(x, int(call.attrs.axis))


@relax_op("astype")
def cast(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """To another dtype."""
    return x.to(torch_dtype(dtype_of(call)))


@relax_op(*_REDUCTIONS)
def reduction(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Over some axes, or all."""
    axes = range(x.dim()) if call.attrs.axis is None else call.attrs.axis
    return _REDUCTIONS[op_name(call)](x, dim=ints(axes), keepdim=bool(call.attrs.keepdims))


def target_shape(call: relax.Call, x: torch.Tensor) -> list[int]:
    """The shape of a result, for as many samples as `x` has."""
    wanted, planned, given = list(shape_of(call)), shape_of(call.args[0]), tuple(x.shape)
    if given == planned:
        return wanted
    if not wanted or wanted[0] != planned[0]:
        raise NotImplementedError(f"makes shape {wanted} of {list(planned)}, across samples")
    return [given[0], *wanted[1:]]


@relax_op("reshape", "squeeze", "expand_dims")
def reshape(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Other axes for the same elements."""
    return x.reshape(target_shape(call, x))


@relax_op("broadcast_to")
def expand(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Repeat axes of one."""
    return x.expand(shape_of(call) if len(shape_of(call)) != x.dim() else target_shape(call, x))


@relax_op("tile")
def tile(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Repeat axes."""
    return x.tile(ints(call.attrs.repeats))


@relax_op("permute_dims")
def transpose(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Axes in another order."""
    axes = call.attrs.axes
    return x.permute(list(range(x.dim()))[::-1] if axes is None else ints(axes))


@relax_op("concat")
def concat(call: relax.Call, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Along one axis."""
    return torch.cat(parts, int(call.attrs.axis))


@relax_op("split")
def split(call: relax.Call, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Into parts of the sizes the module says."""
    axis, places = int(call.attrs.axis), call.attrs.indices_or_sections
    return torch.tensor_split(x, ints(places) if hasattr(places, "__len__") else int(places), axis)


@relax_op("strided_slice")
def slice_(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Ranges of some axes, in steps that may be negative."""
    axes, begin, end, *rest = map(ints, call.args[1:])
    for axis, first, last, step in zip(axes, begin, end, rest[0] if rest else [1] * len(axes), strict=True):
        size = x.shape[axis]
        if axis % x.dim() == 0 and (first, step) == (0, 1) and last >= shape_of(call.args[0])[0]:
            continue
        index = np.arange(size)[slice(first, None if step < 0 and last < -size else last, step)]
        plain = step == 1 and len(index)
        x = x.narrow(axis, int(index[0]), len(index)) if plain else x.index_select(axis, torch.from_numpy(index.copy()))
    return x


@relax_op("take")
def take(call: relax.Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Elements along an axis; indices out of range are clipped, or wrapped, as the operator says."""
    if call.attrs.axis is None:
        raise NotImplementedError("takes from a flattened tensor")
    axis = int(call.attrs.axis) % x.dim()
    size = x.shape[axis]
    found = indices % size if str(call.attrs.mode) == "wrap" else indices.clamp(0, size - 1)
    taken = x.index_select(axis, found.reshape(-1).long())
    return taken.reshape([*x.shape[:axis], *found.shape, *x.shape[axis + 1 :]])


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "replicate": "replicate"}


@relax_op("nn.pad")
def pad(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Relax counts (before, after) per axis, PyTorch from the last axis on."""
    widths, mode = ints(call.attrs.pad_width), _PAD_MODES.get(str(call.attrs.pad_mode))
    if mode is None:
        raise NotImplementedError(f"pads in mode '{call.attrs.pad_mode}'")
    pairs = [width for axis in reversed(range(x.dim())) for width in widths[2 * axis : 2 * axis + 2]]
    if mode == "constant":
        return functional.pad(x, pairs, value=float(call.attrs.pad_value))
    while pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    return functional.pad(x, pairs, mode=mode)

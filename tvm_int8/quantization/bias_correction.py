"""The mean error that rounded weights leave in a layer's outputs, and the means of its inputs without data.

E[(W + e) x] - E[W x] = e E[x] is the same for every pixel of an output channel, so it can be taken out of the bias.
What has to be known of the inputs are their means: observed in calibration, or derived here from batch norms in front.

Source: Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction* (arXiv:1906.04721),
section 4.2 and appendices C and D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_int8.passes.batch_norm_outputs import batch_norm_outputs
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.elementwise_ops import constant_node, data_operands, expression, is_elementwise
from tvm_int8.passes.epilogue_expression import Node
from tvm_int8.passes.expressions import Expr, Var, const_value, op_name, shape_of
from tvm_int8.passes.groups import CONVOLUTIONS, is_view, slice_ranges
from tvm_int8.quantization.arithmetic import STEPS

_DEVIATIONS = np.linspace(-8.0, 8.0, 257)  # of a normal distribution: where functions of it are evaluated
_SHARES = np.exp(-(_DEVIATIONS**2) / 2) / np.exp(-(_DEVIATIONS**2) / 2).sum()
_KEEP_MEANS = ("nn.avg_pool2d", "image.resize2d")  # but for what they read beyond the border


def expected_error(call: relax.Call, error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What an error of the weights adds to a convolution's outputs on average, E[error * x].

    Borders, where taps see padding, are neglected.

    Parameters
    ----------
    call : Call
        conv2d or conv2d_transpose.
    error : ndarray
        Of the weight, as it lies.
    mean : ndarray [C]
        E[x] of the input's channels.

    Returns
    -------
    ndarray of float32, [1, O, 1, 1]
    """
    return _delivered(call, error, mean).reshape(1, -1, 1, 1).astype(np.float32)


def _delivered(call: relax.Call, weight: np.ndarray, data: np.ndarray) -> np.ndarray:
    """What a convolution with this weight makes of an image whose channels are [C] throughout, float64 [O]."""
    groups, taps = int(call.attrs.groups), weight.sum((2, 3), dtype=np.float64)
    by_group = data.reshape(groups, -1), taps.reshape(groups, -1, taps.shape[1])
    if op_name(call) != "nn.conv2d_transpose":
        return np.einsum("gc,goc->go", *by_group).reshape(-1)
    strides = [int(s) for s in call.attrs.strides]
    return np.einsum("gc,gco->go", *by_group).reshape(-1) / np.prod(strides)  # an output meets one tap in so many


def analytic_means(imported: tvm.IRModule, canonical: tvm.IRModule) -> dict[str, np.ndarray]:
    """Means of the channels of a network's tensors over its training data, as far as batch norms tell.

    A batch norm's output is taken to be normally distributed. Element-wise operators on it are integrated over that
    distribution, which for ReLU gives the clipped normal's mean `beta * Phi(beta / gamma) + gamma * phi(beta / gamma)`.
    Sums of tensors, and what a convolution delivers, are taken to be normal again: their terms independent, the pixels
    under a kernel alike. Global averages are taken to be constant. Whatever follows a maximum over pixels, or a
    non-linear operator on a product, is not known until the next batch norm.

    Parameters
    ----------
    imported : IRModule
        With its batch norms.
    canonical : IRModule
        The same network after `pipeline.canonical_float`, equalised or not.

    Returns
    -------
    dict
        Name of a tensor in `canonical` -> float64 [C], in order of execution.
    """
    known = batch_norm_outputs(imported, canonical)
    found: dict[Var, _Channels] = {}
    for binding in Dataflow(canonical).bindings:
        stats = known.get(binding.var.name)
        channels = _forward(binding.value, found) if stats is None else _normal(stats.mean, stats.std)
        if channels is not None:
            found[binding.var] = channels
    return {var.name: channels.mean for var, channels in found.items()}


@dataclass(frozen=True, eq=False)
class _Channels:
    """Distribution of a tensor's channels.

    mean : float64 [C]
    values : [C, 257], what they are as functions of normally distributed sources, at `_DEVIATIONS` of those; [C, 1]
        where they do not vary; None where only the means are known
    source : tells the sources of one batch norm from those of another
    """

    mean: np.ndarray
    values: np.ndarray | None = None
    source: object = None

    @property
    def varies(self) -> bool:
        return self.values is None or self.values.shape[1] > 1

    @property
    def variance(self) -> np.ndarray:
        assert self.values is not None
        return ((self.values - self.mean[:, None]) ** 2) @ _SHARES if self.varies else np.zeros_like(self.mean)

    def select(self, index) -> _Channels:
        return _Channels(self.mean[index], None if self.values is None else self.values[index], object())


def _normal(mean: np.ndarray, std: np.ndarray) -> _Channels:
    return _Channels(mean, mean[:, None] + std[:, None] * _DEVIATIONS, object())


def _of_values(values: np.ndarray, source: object) -> _Channels:
    values = np.asarray(values, np.float64)
    return _Channels(values[:, 0] if values.shape[1] == 1 else values @ _SHARES, values, source)


def _constant(values: np.ndarray) -> _Channels:
    return _Channels(values, values[:, None])


def _forward(call: Expr, found: dict[Var, _Channels]) -> _Channels | None:
    name = op_name(call)
    if not name or len(shape_of(call)) not in (2, 4):
        return None
    if is_elementwise(call):
        return _elementwise(call, found)
    if name == "concat":
        return _concatenated(call, found)
    data = found.get(call.args[0]) if isinstance(call.args[0], Var) else None
    if data is None:
        return None
    if name in CONVOLUTIONS:
        return _convolved(call, data)
    if name in _KEEP_MEANS or is_view(call):
        return data
    if name == "nn.adaptive_avg_pool2d":
        return _constant(data.mean) if shape_of(call)[2:] == (1, 1) else data
    return _selected(call, data)


def _convolved(call: relax.Call, data: _Channels) -> _Channels | None:
    weight = const_value(call.args[1])
    if weight is None:
        return None
    mean = _delivered(call, weight, data.mean)
    if not data.varies:
        return _constant(mean)
    if data.values is None:
        return _Channels(mean)
    taps = weight.sum((2, 3), keepdims=True, dtype=np.float64)
    return _normal(mean, np.sqrt(_delivered(call, taps**2, data.variance)))


def _concatenated(call: relax.Call, found: dict[Var, _Channels]) -> _Channels | None:
    fields = call.args[0].fields
    parts = [found[field] for field in fields if field in found]
    if int(call.attrs.axis) not in (1, 1 - len(shape_of(call))) or len(parts) < len(fields):
        return None
    mean = np.concatenate([part.mean for part in parts])
    values = [np.broadcast_to(v, (len(v), len(_SHARES))) for v in (part.values for part in parts) if v is not None]
    return _Channels(mean, np.concatenate(values), object()) if len(values) == len(parts) else _Channels(mean)


def _selected(call: relax.Call, data: _Channels) -> _Channels | None:
    """Slices and permutations of channels; slices of pixels keep what there is."""
    if op_name(call) == "take" and int(call.attrs.axis) == 1:
        order = const_value(call.args[1])
        return None if order is None or order.ndim != 1 else data.select(order)
    ranges = slice_ranges(call) if op_name(call) == "strided_slice" and len(shape_of(call)) == 4 else None
    if ranges is None:
        return None
    first, step = ranges.get(1, (0, 1))
    return data.select(first + step * np.arange(shape_of(call)[1])) if 1 in ranges else data


def _elementwise(call: relax.Call, found: dict[Var, _Channels]) -> _Channels | None:
    channels, shape = shape_of(call)[1], shape_of(call)
    operands: dict[Expr, _Channels] = {}
    for operand in data_operands(call):
        known = _operand(operand, shape, found)
        if known is None or len(known.mean) != channels:
            return None
        operands[operand] = known
    random = [operand for operand in operands.values() if operand.varies]
    if all(o.values is not None for o in random) and len({id(o.source) for o in random}) <= 1:
        root = expression(call, lambda expr, _: Node("tensor", value=operands[expr].values))
        with np.errstate(all="ignore"):
            return _of_values(_evaluated(root), random[0].source if random else None)
    return _independent(op_name(call), *operands.values()) if len(operands) == 2 else None


def _operand(expr: Expr, shape: tuple[int, ...], found: dict[Var, _Channels]) -> _Channels | None:
    value = const_value(expr)
    if value is None:
        return found.get(expr) if isinstance(expr, Var) else None
    node = constant_node(value, shape)
    return None if node is None else _constant(np.broadcast_to(np.asarray(node.value, np.float64), (shape[1],)))


def _evaluated(node: Node) -> np.ndarray:
    """The value of an epilogue expression over [C, nodes] arrays."""
    if node.op == "channel":
        return node.value[:, None]
    if node.constant or node.op == "tensor":
        return node.value
    return STEPS[node.op](*(_evaluated(arg) for arg in node.args))


def _independent(name: str, a: _Channels, b: _Channels) -> _Channels | None:
    """Sums and products of tensors that have nothing to do with each other, or are known by their means alone."""
    if name == "multiply":
        return _Channels(a.mean * b.mean)
    if name not in ("add", "subtract"):
        return None
    mean = a.mean + b.mean if name == "add" else a.mean - b.mean
    if a.values is None or b.values is None:
        return _Channels(mean)
    return _normal(mean, np.sqrt(a.variance + b.variance))

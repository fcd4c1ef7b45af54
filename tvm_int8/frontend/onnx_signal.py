"""Networks over 1-D signals: which operators may run on the [N, C, 1, W] form their convolutions are written in.

A convolution over [N, C, W] becomes a 2-D one between two reshapes. Element-wise operators between such convolutions are
applied to the four-dimensional form, so that no reshape separates a convolution from its activation.
"""

from __future__ import annotations

import numpy as np

from .onnx_registry import Node

_ELEMENTWISE = {
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Softplus", "Mish"),
    *("Gelu", "Swish", "Abs", "Neg", "Exp", "Sqrt", "Erf", "Add", "Sub", "Mul", "Div", "Sum", "BatchNormalization"),
}
_PER_CHANNEL_VECTORS = {"BatchNormalization", "Clip"}


def is_lifted_elementwise(ctx, node: Node, inputs) -> bool:
    """Whether `node` is element-wise and at least one operand exists as [N, C, 1, W], the others being such or constants."""
    if node.domain or node.op_type not in _ELEMENTWISE:
        return False
    variables = [value for value in inputs if value is not None and not isinstance(value, np.ndarray)]
    constants = [value for value in inputs if isinstance(value, np.ndarray)]
    if not variables or any(value.ndim > 3 for value in constants):
        return False
    if any(not _is_variable(value) or len(ctx.shape(value)) != 3 for value in variables):
        return False
    if node.op_type in _PER_CHANNEL_VECTORS and any(value.ndim > 1 for value in constants):
        return False
    shapes = {ctx.shape(value) for value in variables}
    return len(shapes) == 1 and any(value in ctx.lifted for value in variables)


def _is_variable(value) -> bool:
    from tvm import relax

    return isinstance(value, relax.Var)

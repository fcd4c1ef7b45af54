"""An ONNX graph under construction, and the operators that have no weights.

Every operator writes its node and computes beside it what the node makes of the sweep's images, from which layers with
weights (`benchmarks.zoo.builder`) take their statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.images import synthetic_images
from benchmarks.zoo import numpy_layers

_OPSET = 17
_SWEEP_SEED = 2024  # seeds 0, 1, ... are left to callers, so the sweep's images are never among their inputs


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its name, and its value for the sweep's images, float32 [images, C, h, w]."""

    name: str
    value: np.ndarray

    @property
    def channels(self) -> int:
        """Size of the channel axis."""
        return self.value.shape[1]


class Operators:
    """A graph that grows by one node per call.

    Parameters
    ----------
    name : str
        Of the graph.
    input_shape : tuple of int
        Batch, channels, height, width.
    sweep : tuple of int
        Number of the sweep's images, and their height and width.
    """

    def __init__(self, name: str, input_shape: tuple[int, int, int, int], sweep: tuple[int, int]):
        self.name, self.input_shape = name, input_shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        count, size = sweep
        images = synthetic_images(count, (input_shape[1], size, size), seed=_SWEEP_SEED)
        self.input = Tensor("input", np.concatenate(images))

    # Activations

    def relu(self, x: Tensor, name: str) -> Tensor:
        """Rectified linear unit."""
        return self._node("Relu", name, [x.name], np.maximum(x.value, 0))

    def relu6(self, x: Tensor, name: str) -> Tensor:
        """ReLU cut off at 6, as a Clip."""
        bounds = [self._store(f"{name}/{end}", np.array(value, np.float32)) for end, value in (("min", 0), ("max", 6))]
        return self._node("Clip", name, [x.name, *bounds], np.clip(x.value, 0, 6))

    def leaky_relu(self, x: Tensor, name: str, slope: float = 0.1) -> Tensor:
        """ReLU with `slope` below zero."""
        return self._node("LeakyRelu", name, [x.name], np.maximum(x.value, slope * x.value), alpha=slope)

    def sigmoid(self, x: Tensor, name: str) -> Tensor:
        """Logistic function."""
        return self._node("Sigmoid", name, [x.name], 1 / (1 + np.exp(-x.value)))

    def silu(self, x: Tensor, name: str) -> Tensor:
        """``x * sigmoid(x)``, as the two nodes exporters write."""
        return self.multiply(x, self.sigmoid(x, f"{name}/sigmoid"), name)

    def hard_sigmoid(self, x: Tensor, name: str) -> Tensor:
        """``clip(x / 6 + 1 / 2, 0, 1)``."""
        return self._node("HardSigmoid", name, [x.name], np.clip(x.value / 6 + 0.5, 0, 1), alpha=1 / 6, beta=0.5)

    def hard_swish(self, x: Tensor, name: str) -> Tensor:
        """``x * clip(x / 6 + 1 / 2, 0, 1)``."""
        return self._node("HardSwish", name, [x.name], x.value * np.clip(x.value / 6 + 0.5, 0, 1))

    # Arithmetic

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """Sum of two tensors of one shape."""
        return self._node("Add", name, [x.name, y.name], x.value + y.value)

    def multiply(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """Product of two tensors; `y` may be one number per channel."""
        return self._node("Mul", name, [x.name, y.name], x.value * y.value)

    # Pooling and resizing

    def max_pool(
        self,
        x: Tensor,
        name: str,
        kernel: int,
        stride: int,
        pad: int | tuple[int, int, int, int] | None = None,
        ceil: bool = False,
    ) -> Tensor:
        """Max pooling, padded by ``kernel // 2`` unless `pad` says otherwise."""
        pads = _pads(kernel // 2 if pad is None else pad)
        value = numpy_layers.max_pool2d(x.value, kernel, stride, pads, ceil)
        window = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": list(pads)}
        return self._node("MaxPool", name, [x.name], value, **window, **({"ceil_mode": 1} if ceil else {}))

    def average_pool(
        self, x: Tensor, name: str, kernel: int, stride: int, pad: int = 0, count_pads: bool = True
    ) -> Tensor:
        """Average pooling."""
        value = numpy_layers.average_pool2d(x.value, kernel, stride, pad, count_pads)
        window = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": [pad] * 4}
        return self._node("AveragePool", name, [x.name], value, **window, count_include_pad=int(count_pads))

    def global_pool(self, x: Tensor, name: str) -> Tensor:
        """Mean of every channel: [N, C, 1, 1]."""
        return self._node("GlobalAveragePool", name, [x.name], x.value.mean((2, 3), keepdims=True))

    def resize(self, x: Tensor, name: str, size: tuple[int, int], mode: str) -> Tensor:
        """Resize to `size`, "nearest" (to a multiple) or "linear", with half-pixel centres."""
        sizes = self._store(f"{name}/sizes", np.array([self.input_shape[0], x.channels, *size], np.int64))
        value = numpy_layers.resize2d(x.value, size, mode)
        how = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._node("Resize", name, [x.name, "", "", sizes], value, **how)

    def depth_to_space(self, x: Tensor, name: str, factor: int) -> Tensor:
        """Pixel shuffle: `factor` squared channels become one of `factor` times the height and width."""
        value = numpy_layers.depth_to_space(x.value, factor)
        return self._node("DepthToSpace", name, [x.name], value, blocksize=factor, mode="CRD")

    # Movers

    def concat(self, tensors: Sequence[Tensor], name: str) -> Tensor:
        """Concatenation along axis 1."""
        value = np.concatenate([tensor.value for tensor in tensors], 1)
        return self._node("Concat", name, [tensor.name for tensor in tensors], value, axis=1)

    def halves(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Split the channels in two."""
        first, second = (Tensor(f"{name}/{half}", value) for half, value in enumerate(np.split(x.value, 2, 1)))
        sizes = self._store(f"{name}/sizes", np.array([first.channels, second.channels], np.int64))
        self.nodes.append(helper.make_node("Split", [x.name, sizes], [first.name, second.name], name=name, axis=1))
        return first, second

    def reshape(self, x: Tensor, name: str, shape: Sequence[int]) -> Tensor:
        """Reshape; `shape` begins behind the batch axis."""
        stored = self._store(f"{name}/shape", np.array([self.input_shape[0], *shape], np.int64))
        return self._node("Reshape", name, [x.name, stored], x.value.reshape(len(x.value), *shape))

    def transpose(self, x: Tensor, name: str, axes: Sequence[int]) -> Tensor:
        """Transpose to the order `axes`."""
        return self._node("Transpose", name, [x.name], x.value.transpose(axes), perm=list(axes))

    def flatten(self, x: Tensor, name: str) -> Tensor:
        """[N, everything else]."""
        return self._node("Flatten", name, [x.name], x.value.reshape(len(x.value), -1))

    def channel_shuffle(self, x: Tensor, name: str, groups: int) -> Tensor:
        """Interleave the channels of `groups` groups, as exporters write it."""
        _, channels, height, width = x.value.shape
        y = self.reshape(x, f"{name}/split", (groups, channels // groups, height, width))
        y = self.transpose(y, f"{name}/transpose", (0, 2, 1, 3, 4))
        return self.reshape(y, name, (channels, height, width))

    # The graph

    def finish(self, *outputs: Tensor) -> onnx.ModelProto:
        """Return the checked model."""

        def info(tensor: Tensor) -> onnx.ValueInfoProto:
            shape = [self.input_shape[0], *tensor.value.shape[1:]]
            return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(self.input.name, TensorProto.FLOAT, self.input_shape)],
            [info(output) for output in outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _node(self, op_type: str, name: str, inputs: list[str], value: np.ndarray, **attributes) -> Tensor:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return Tensor(name, value.astype(np.float32, copy=False))

    def _store(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def _pads(pad: int | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (pad,) * 4 if isinstance(pad, int) else pad

"""Well known networks built from nothing: the topology of the paper, random weights, batch norm not folded.

Only NumPy and onnx are needed, so that a demo can show the compiler at work on a full-sized network without downloading
one. A network is described once; `GraphBuilder` writes the ONNX nodes and, beside them, computes the activations of two
small synthetic images, from which every batch norm takes its mean and variance. Activations therefore stay
as healthy as in a trained network, through any depth.

A new network is a function that calls the builder's layers and returns ``builder.finish(...)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import numpy_layers
from benchmarks.images import synthetic_images

_SWEEP_IMAGE = 128  # height and width of the images the statistics are taken from; the weights do not depend on it
_OPSET = 17


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its name, and its value for the sweep's images, float32 [2, C, h, w]."""

    name: str
    value: np.ndarray


class GraphBuilder:
    """Writes an ONNX graph layer by layer.

    Parameters
    ----------
    name : str
        Of the graph.
    input_shape : tuple of int
        Batch, channels, height, width.
    seed : int
        Of the weights.
    """

    def __init__(self, name: str, input_shape: tuple[int, int, int, int], seed: int = 0):
        self.name, self.input_shape = name, input_shape
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        size = (input_shape[1], _SWEEP_IMAGE, _SWEEP_IMAGE)
        self.input = Tensor("input", np.concatenate(synthetic_images(2, size, seed=2024)))

    def conv_bn(
        self, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, branch: bool = False
    ) -> Tensor:
        """Convolution without bias, padded to keep the size, then batch norm.

        `branch` marks the last layer of a residual branch, which adds little to the trunk it joins: its scale is
        small, as training makes it.
        """
        shape = (channels, x.value.shape[1] // groups, kernel, kernel)
        weight = self._he(shape)
        pad = kernel // 2
        y = self._node(
            "Conv",
            f"{name}/conv",
            [x.name, self._store(f"{name}/weight", weight)],
            numpy_layers.conv2d(x.value, weight, stride, pad, groups),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )
        return self._batch_norm(y, f"{name}/bn", 0.5 if branch else 1.0)

    def _batch_norm(self, x: Tensor, name: str, share: float, epsilon: float = 1e-5) -> Tensor:
        channels = int(x.value.shape[1])
        mean, variance = x.value.mean((0, 2, 3)), np.maximum(x.value.var((0, 2, 3)), 1e-6)
        scale = (share * self.rng.uniform(0.5, 1.5, channels)).astype(np.float32)
        # Positive on average: with zero-mean inputs to every ReLU a deep random network amplifies rounding errors.
        bias = (share * self.rng.normal(0.7, 0.5, channels)).astype(np.float32)
        factor = scale / np.sqrt(variance + epsilon)
        value = x.value * factor[:, None, None] + (bias - mean * factor)[:, None, None]
        fields = {"scale": scale, "bias": bias, "mean": mean, "var": variance}
        inputs = [x.name, *(self._store(f"{name}/{field}", array) for field, array in fields.items())]
        return self._node("BatchNormalization", name, inputs, value, epsilon=epsilon)

    def relu(self, x: Tensor, name: str) -> Tensor:
        """Rectified linear unit."""
        return self._node("Relu", name, [x.name], np.maximum(x.value, 0))

    def relu6(self, x: Tensor, name: str) -> Tensor:
        """ReLU cut off at 6, as a Clip."""
        bounds = [self._store(f"{name}/{end}", np.array(value, np.float32)) for end, value in (("min", 0), ("max", 6))]
        return self._node("Clip", name, [x.name, *bounds], np.clip(x.value, 0, 6))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """Sum of two tensors of one shape."""
        return self._node("Add", name, [x.name, y.name], x.value + y.value)

    def max_pool(self, x: Tensor, name: str, kernel: int, stride: int) -> Tensor:
        """Max pooling, padded by ``kernel // 2``."""
        pad = kernel // 2
        value = numpy_layers.max_pool2d(x.value, kernel, stride, pad)
        window = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": [pad] * 4}
        return self._node("MaxPool", name, [x.name], value, **window)

    def classifier(self, x: Tensor, classes: int) -> Tensor:
        """Global average pooling, flatten and a dense layer: logits [N, classes]."""
        x = self._node("GlobalAveragePool", "pool", [x.name], x.value.mean((2, 3), keepdims=True))
        x = self._node("Flatten", "flatten", [x.name], x.value[:, :, 0, 0])
        weight = self._he((classes, x.value.shape[1]))
        y = x.value @ weight.T
        weight *= np.float32(2.0 / y.std())
        # Without its mean over the images an output tells them apart, which is what a trained classifier does.
        bias = self.rng.normal(0.0, 0.5, classes).astype(np.float32) - (x.value @ weight.T).mean(0)
        inputs = [x.name, self._store("fc/weight", weight), self._store("fc/bias", bias)]
        return self._node("Gemm", "logits", inputs, x.value @ weight.T + bias, transB=1)

    def finish(self, output: Tensor) -> onnx.ModelProto:
        """Return the checked model with `output` as its one output."""
        shape = [self.input_shape[0], *output.value.shape[1:]]
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(self.input.name, TensorProto.FLOAT, self.input_shape)],
            [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _node(self, op_type: str, name: str, inputs: list[str], value: np.ndarray, **attributes) -> Tensor:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return Tensor(name, value.astype(np.float32, copy=False))

    def _store(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32, copy=False), name))
        return name

    def _he(self, shape: tuple[int, ...]) -> np.ndarray:
        weight = self.rng.standard_normal(shape, np.float32)
        weight *= np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
        return weight


def resnet50(batch: int = 1, image: int = 224, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 (He et al., 2015) in the v1.5 form everybody deploys: stride in the 3x3 convolution.

    Parameters
    ----------
    batch, image : int
        The input is float32 [batch, 3, image, image].
    classes : int
        Number of logits.
    seed : int
        Of the weights.

    Returns
    -------
    onnx.ModelProto
        53 convolutions with unfolded batch norms, opset 17, output "logits" float32 [batch, classes].
    """
    net = GraphBuilder("resnet50", (batch, 3, image, image), seed)
    x = net.relu(net.conv_bn(net.input, "conv1", 64, 7, stride=2), "conv1/relu")
    x = net.max_pool(x, "maxpool", 3, 2)
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _bottleneck(net, x, f"layer{stage}.{block}", width, stride, project=block == 0)
    return net.finish(net.classifier(x, classes))


def _bottleneck(net: GraphBuilder, x: Tensor, name: str, width: int, stride: int, project: bool) -> Tensor:
    y = net.relu(net.conv_bn(x, f"{name}.conv1", width, 1), f"{name}.relu1")
    y = net.relu(net.conv_bn(y, f"{name}.conv2", width, 3, stride), f"{name}.relu2")
    y = net.conv_bn(y, f"{name}.conv3", 4 * width, 1, branch=True)
    shortcut = net.conv_bn(x, f"{name}.downsample", 4 * width, 1, stride) if project else x
    return net.relu(net.add(y, shortcut, f"{name}.add"), f"{name}.relu3")


def mobilenet_v1(
    batch: int = 1, image: int = 224, alpha: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNetV1 (Howard et al., 2017): 13 depthwise-separable blocks with ReLU6.

    Parameters
    ----------
    batch, image : int
        The input is float32 [batch, 3, image, image].
    alpha : float
        Multiplies every layer's channels (1.0, 0.75, 0.5 and 0.25 are common).
    classes : int
        Number of logits.
    seed : int
        Of the weights.

    Returns
    -------
    onnx.ModelProto
        27 convolutions with unfolded batch norms, opset 17, output "logits" float32 [batch, classes].
    """

    def width(channels: int) -> int:
        return max(8, int(channels * alpha + 0.5))

    net = GraphBuilder("mobilenet_v1", (batch, 3, image, image), seed)
    x = net.relu6(net.conv_bn(net.input, "conv0", width(32), 3, stride=2), "conv0/relu6")
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for index, (channels, stride) in enumerate(blocks, start=1):
        depth, name = x.value.shape[1], f"block{index}"
        x = net.relu6(net.conv_bn(x, f"{name}.depthwise", depth, 3, stride, groups=depth), f"{name}.depthwise/relu6")
        x = net.relu6(net.conv_bn(x, f"{name}.pointwise", width(channels), 1), f"{name}.pointwise/relu6")
    return net.finish(net.classifier(x, classes))

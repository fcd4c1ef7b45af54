"""Small ONNX networks that together hold every operator and fusion the compiler knows, with odd channels and sizes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Network:
    """Builds a graph node by node; every method takes and returns names of tensors."""

    def __init__(self, seed: int = 0, **inputs: tuple[int, ...]):
        self.rng = np.random.default_rng(seed)
        self.inputs = inputs
        self.channels = {name: shape[1] for name, shape in inputs.items()}
        self.nodes: list = []
        self.weights: list = []

    def weight(self, array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op_type: str, *inputs: str, channels: int | None = None, **attributes) -> str:
        """A node with one output, named after its operator and place: "conv3"."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], f"/{name}", **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def conv(self, x: str, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1) -> str:
        fan_in = self.channels[x] // groups * kernel * kernel
        weight = self.normal(out, self.channels[x] // groups, kernel, kernel, scale=fan_in**-0.5)
        pad = dilation * (kernel - 1) // 2
        return self.add(
            "Conv", x, weight, self.normal(out, scale=0.3), channels=out, kernel_shape=[kernel] * 2, group=groups,
            strides=[stride] * 2, pads=[pad] * 4, dilations=[dilation] * 2,
        )  # fmt: skip

    def norm(self, x: str) -> str:
        c = self.channels[x]
        positive = [self.weight(self.rng.uniform(0.5, 1.5, c).astype(np.float32)) for _ in range(2)]
        return self.add("BatchNormalization", x, positive[0], self.normal(c), self.normal(c, scale=0.2), positive[1])

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def clip(self, x: str, low: float, high: float) -> str:
        return self.add("Clip", x, self.weight(np.float32(low)), self.weight(np.float32(high)))

    def concat(self, *inputs: str) -> str:
        return self.add("Concat", *inputs, axis=1, channels=sum(self.channels[x] for x in inputs))

    def dense(self, x: str, k: int, out: int) -> str:
        weight, bias = self.normal(out, k, scale=k**-0.5), self.normal(out, scale=0.3)
        return self.add("Gemm", x, weight, bias, transB=1, channels=out)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.weight(np.array(shape, np.int64)), channels=shape[1])

    def resize(self, x: str, scale: float, **attributes) -> str:
        return self.add("Resize", x, "", self.weight(np.array([1, 1, scale, scale], np.float32)), **attributes)

    def finish(self, *outputs: str) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.inputs.items()]
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        for result in results:
            result.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self.nodes, "small", inputs, results, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


def residual() -> onnx.ModelProto:
    """ResNet: batch norms, residuals with and without projection, global pooling, a dense head, batch 2."""
    net = Network(x=(2, 3, 11, 9))
    y = net.relu(net.norm(net.conv("x", 19)))
    y = net.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = net.norm(net.conv(net.relu(net.norm(net.conv(y, 19))), 19))
    y = net.relu(net.add("Add", z, y))
    z = net.norm(net.conv(net.relu(net.norm(net.conv(y, 33, stride=2))), 33))
    y = net.relu(net.add("Add", net.norm(net.conv(y, 33, 1, stride=2)), z))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.finish(net.dense(y, 33, 10))


def mobile() -> onnx.ModelProto:
    """MobileNet: depthwise convolutions with ReLU6 and hard-swish, squeeze and excitation, a linear bottleneck."""
    net = Network(x=(1, 3, 15, 13))
    y = net.clip(net.norm(net.conv("x", 10, stride=2)), 0, 6)
    z = net.clip(net.norm(net.conv(y, 21, 1)), 0, 6)
    z = net.add("HardSwish", net.norm(net.conv(z, 21, 5, groups=21)))
    gate = net.relu(net.conv(net.add("GlobalAveragePool", z), 6, 1))
    gate = net.add("HardSigmoid", net.conv(gate, 21, 1), alpha=1 / 6)
    y = net.add("Add", net.norm(net.conv(net.add("Mul", z, gate), 10, 1)), y)
    y = net.add("HardSwish", net.norm(net.conv(y, 10, 3, stride=2, groups=10)))
    y = net.add("ReduceMean", net.conv(y, 17, 1), axes=[2, 3], keepdims=0)
    return net.finish(net.dense(y, 17, 5))


def inception() -> onnx.ModelProto:
    """Inception: branches of different scales, pools of both kinds, concatenated."""
    net = Network(x=(1, 4, 12, 12))
    y = net.relu(net.conv("x", 16, 3))
    y = net.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    pool = net.add("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mean = net.add("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    branches = [net.relu(net.conv(y, 9, 1)), net.relu(net.conv(y, 16, 3)), net.conv(pool, 7, 1), mean]
    y = net.relu(net.conv(net.concat(*branches), 20, 1))
    y = net.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    return net.finish(net.relu(net.conv(y, 24, 3, dilation=2)))


def decoder() -> onnx.ModelProto:
    """U-Net: nearest and bilinear upsampling, transposed convolution, a skip connection, two outputs."""
    net = Network(x=(1, 3, 10, 12))
    skip = net.relu(net.conv("x", 12))
    y = net.relu(net.conv(net.add("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 20))
    up = net.resize(y, 2, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    y = net.relu(net.conv(net.concat(up, skip), 17))
    smooth = net.resize(net.conv(y, 5, 1), 2, mode="linear", coordinate_transformation_mode="half_pixel")
    weight = net.normal(17, 6, 3, 3, scale=0.15)
    up = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    y = net.add("ConvTranspose", y, weight, net.normal(6), channels=6, **up)
    return net.finish(net.conv(smooth, 3, 1), net.add("Sigmoid", net.conv(net.relu(y), 1, 1)))


def shuffle() -> onnx.ModelProto:
    """ShuffleNet: grouped convolutions, channel shuffles of both versions, split, slices."""
    net = Network(x=(2, 3, 8, 10))
    y = net.relu(net.conv("x", 24))
    z = net.reshape(net.relu(net.conv(y, 24, 1, groups=3)), 2, 3, 8, 8, 10)
    z = net.reshape(net.add("Transpose", z, perm=[0, 2, 1, 3, 4]), 2, 24, 8, 10)
    z = net.conv(net.conv(z, 24, 3, stride=2, groups=24), 24, 1, groups=3)
    y = net.add("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    y = net.relu(net.concat(y, z))
    bounds = [[net.weight(np.array([v], np.int64)) for v in (at, at + 24, 1)] for at in (0, 24)]
    left, right = (net.add("Slice", y, *bound, channels=24) for bound in bounds)
    y = net.reshape(net.concat(left, net.relu(net.conv(right, 24, 1))), 2, 2, 24, 4, 5)
    y = net.reshape(net.add("Transpose", y, perm=[0, 2, 1, 3, 4]), 2, 48, 4, 5)
    return net.finish(net.conv(y, 10, 1))


def activations() -> onnx.ModelProto:
    """One convolution for each activation."""
    net = Network(x=(1, 5, 7, 9))
    y = net.add("Sigmoid", net.conv("x", 18, 1))
    y = net.conv(y, 18, 1)
    y = net.add("Mul", y, net.add("Sigmoid", y))
    y = net.add("HardSwish", net.conv(y, 18, 1))
    y = net.add("PRelu", net.conv(y, 18, 1), net.weight(net.rng.uniform(0, 0.5, (18, 1, 1)).astype(np.float32)))
    y = net.add("LeakyRelu", net.conv(y, 18, 1), alpha=0.1)
    y = net.add("Tanh", net.conv(y, 18, 1))
    y = net.conv(y, 18, 1)
    half = net.add("Mul", y, net.weight(np.float32(0.5)))
    erf = net.add("Erf", net.add("Mul", y, net.weight(np.float32(0.5**0.5))))
    y = net.add("Mul", half, net.add("Add", erf, net.weight(np.float32(1))))
    return net.finish(net.conv(y, 6, 1))


def dense() -> onnx.ModelProto:
    """Two inputs: a padded and sliced image, flattened into dense layers, and a vector that joins them."""
    net = Network(image=(2, 3, 9, 9), vector=(2, 7))
    pads = net.weight(np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64))
    y = net.relu(net.conv(net.add("Pad", net.relu(net.conv("image", 17)), pads), 11, 3, stride=2))
    bounds = [net.weight(np.array(values, np.int64)) for values in ([1, 0], [5, 4], [2, 3], [1, 1])]
    y = net.add("Flatten", net.add("Slice", y, *bounds))
    y = net.relu(net.dense(y, 11 * 4 * 4, 30))
    y = net.concat(y, net.relu(net.dense("vector", 7, 9)))
    return net.finish(net.dense(y, 39, 4))


def responses() -> onnx.ModelProto:
    """AlexNet and GoogLeNet: local response normalisation behind a convolution and behind a pool, in front of both."""
    net = Network(x=(2, 3, 13, 11))
    y = net.add("LRN", net.relu(net.conv("x", 40)), size=5, alpha=0.2, beta=0.75, bias=1.0)
    y = net.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2])
    y = net.relu(net.conv(net.add("LRN", y, size=3, alpha=0.3, beta=0.6, bias=2.0), 20))
    return net.finish(net.conv(net.relu(net.add("LRN", y, size=7, alpha=0.5, beta=0.5)), 10, 1))


def with_islands() -> onnx.ModelProto:
    """Operators that stay float: softmax, a reduction, a transpose of the map."""
    net = Network(x=(1, 3, 8, 8))
    y = net.relu(net.conv("x", 20))
    y = net.add("Softmax", net.conv(y, 20), axis=1)
    y = net.conv(net.add("Transpose", y, perm=[0, 1, 3, 2]), 12)
    return net.finish(net.add("Softmax", net.add("ReduceMax", y, axes=[2, 3], keepdims=0), axis=1))


NETWORKS = {f.__name__: f for f in (residual, mobile, inception, decoder, shuffle, activations, dense, responses)}


def draw(model: onnx.ModelProto, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Inputs by name: smooth noise for images, normal numbers for the rest."""
    rng, batches = np.random.default_rng(seed), []
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    for _ in range(count):
        batch = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for name, value in batch.items():
            if value.ndim == 4:
                batch[name] = value + np.roll(value, 1, 2) + np.roll(value, 1, 3) * 0.5
        batches.append(batch)
    return batches

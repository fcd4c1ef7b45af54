"""Inception v3 (Szegedy et al., 2015) and v4 (Szegedy et al., 2016)."""

from __future__ import annotations

import onnx

from benchmarks.zoo.builder import GraphBuilder, Kernel, Tensor, scale_channels, scale_depth

Layers = list[tuple[int, Kernel]]


class _Inception(GraphBuilder):
    """Adds convolution units and chains of them; channels are given for width 1."""

    def __init__(self, name: str, input_shape: tuple[int, int, int, int], seed: int, width: float):
        super().__init__(name, input_shape, seed)
        self.width = width

    def unit(self, x: Tensor, name: str, channels: int, kernel: Kernel, stride: int = 1, **window) -> Tensor:
        """Convolution, batch norm, ReLU; with a stride it is not padded."""
        if stride > 1:
            window["pad"] = 0
        x = self.conv_bn(x, name, scale_channels(channels, self.width), kernel, stride, **window)
        return self.relu(x, f"{name}/relu")

    def chain(self, x: Tensor, name: str, layers: Layers, stride: int = 1) -> Tensor:
        """Units one behind the other; the last has the stride."""
        for index, (channels, kernel) in enumerate(layers, start=1):
            x = self.unit(x, f"{name}.{index}", channels, kernel, stride if index == len(layers) else 1)
        return x

    def pooled(self, x: Tensor, name: str, channels: int) -> Tensor:
        """Average of 3x3 pixels, then a 1x1 unit."""
        return self.unit(self.average_pool(x, f"{name}/pool", 3, 1, 1, count_pads=False), name, channels, 1)

    def shrink(self, x: Tensor, name: str) -> Tensor:
        """3x3 maximum with stride 2, not padded."""
        return self.max_pool(x, name, 3, 2, pad=0)

    def fork(self, x: Tensor, name: str, first: int, second: int, kernels: tuple[Kernel, Kernel]) -> list[Tensor]:
        """Two units side by side."""
        return [self.unit(x, f"{name}.a", first, kernels[0]), self.unit(x, f"{name}.b", second, kernels[1])]


def inception_v3(
    batch: int = 1, image: int = 299, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """Inception v3 without the auxiliary classifier."""
    net = _Inception("inception_v3", (batch, 3, image, image), seed, width)
    x = net.unit(net.input, "stem.1", 32, 3, 2)
    x = net.unit(net.unit(x, "stem.2", 32, 3, pad=0), "stem.3", 64, 3)
    x = net.shrink(x, "stem.pool1")
    x = net.unit(net.unit(x, "stem.4", 80, 1), "stem.5", 192, 3, pad=0)
    x = net.shrink(x, "stem.pool2")
    for block, pool in enumerate((32, 64, 64), start=1):
        x = _v3_a(net, x, f"a{block}", pool)
    x = _v3_reduce_a(net, x, "reduce_a")
    for block, inner in enumerate((128, 160, 160, 192), start=1):
        x = _v3_b(net, x, f"b{block}", inner)
    x = _v3_reduce_b(net, x, "reduce_b")
    for block in (1, 2):
        x = _v3_c(net, x, f"c{block}")
    return net.finish(net.classifier(x, classes))


def _v3_a(net: _Inception, x: Tensor, name: str, pool: int) -> Tensor:
    branches = [
        net.unit(x, f"{name}.single", 64, 1),
        net.chain(x, f"{name}.five", [(48, 1), (64, 5)]),
        net.chain(x, f"{name}.double", [(64, 1), (96, 3), (96, 3)]),
        net.pooled(x, f"{name}.pooled", pool),
    ]
    return net.concat(branches, name)


def _v3_reduce_a(net: _Inception, x: Tensor, name: str) -> Tensor:
    branches = [
        net.unit(x, f"{name}.three", 384, 3, 2),
        net.chain(x, f"{name}.double", [(64, 1), (96, 3), (96, 3)], stride=2),
        net.shrink(x, f"{name}.pool"),
    ]
    return net.concat(branches, name)


def _v3_b(net: _Inception, x: Tensor, name: str, inner: int) -> Tensor:
    double: Layers = [(inner, 1), (inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))]
    branches = [
        net.unit(x, f"{name}.single", 192, 1),
        net.chain(x, f"{name}.seven", [(inner, 1), (inner, (1, 7)), (192, (7, 1))]),
        net.chain(x, f"{name}.double", double),
        net.pooled(x, f"{name}.pooled", 192),
    ]
    return net.concat(branches, name)


def _v3_reduce_b(net: _Inception, x: Tensor, name: str) -> Tensor:
    branches = [
        net.chain(x, f"{name}.three", [(192, 1), (320, 3)], stride=2),
        net.chain(x, f"{name}.seven", [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)], stride=2),
        net.shrink(x, f"{name}.pool"),
    ]
    return net.concat(branches, name)


def _v3_c(net: _Inception, x: Tensor, name: str) -> Tensor:
    three = net.unit(x, f"{name}.three", 384, 1)
    double = net.chain(x, f"{name}.double", [(448, 1), (384, 3)])
    branches = [
        net.unit(x, f"{name}.single", 320, 1),
        *net.fork(three, f"{name}.three", 384, 384, ((1, 3), (3, 1))),
        *net.fork(double, f"{name}.double", 384, 384, ((1, 3), (3, 1))),
        net.pooled(x, f"{name}.pooled", 192),
    ]
    return net.concat(branches, name)


def inception_v4(
    batch: int = 1, image: int = 299, width: float = 1.0, depth: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """Inception v4, the one without residual connections."""
    net = _Inception("inception_v4", (batch, 3, image, image), seed, width)
    x = _v4_stem(net)
    for block in range(1, scale_depth(4, depth) + 1):
        x = _v4_a(net, x, f"a{block}")
    x = _v4_reduce_a(net, x, "reduce_a")
    for block in range(1, scale_depth(7, depth) + 1):
        x = _v4_b(net, x, f"b{block}")
    x = _v4_reduce_b(net, x, "reduce_b")
    for block in range(1, scale_depth(3, depth) + 1):
        x = _v4_c(net, x, f"c{block}")
    return net.finish(net.classifier(x, classes))


def _v4_stem(net: _Inception) -> Tensor:
    x = net.unit(net.input, "stem.1", 32, 3, 2)
    x = net.unit(net.unit(x, "stem.2", 32, 3, pad=0), "stem.3", 64, 3)
    x = net.concat([net.shrink(x, "stem.pool1"), net.unit(x, "stem.4", 96, 3, 2)], "stem.concat1")
    short = net.unit(net.unit(x, "stem.5", 64, 1), "stem.6", 96, 3, pad=0)
    long = net.chain(x, "stem.7", [(64, 1), (64, (7, 1)), (64, (1, 7))])
    x = net.concat([short, net.unit(long, "stem.8", 96, 3, pad=0)], "stem.concat2")
    return net.concat([net.unit(x, "stem.9", 192, 3, 2), net.shrink(x, "stem.pool2")], "stem.concat3")


def _v4_a(net: _Inception, x: Tensor, name: str) -> Tensor:
    branches = [
        net.pooled(x, f"{name}.pooled", 96),
        net.unit(x, f"{name}.single", 96, 1),
        net.chain(x, f"{name}.three", [(64, 1), (96, 3)]),
        net.chain(x, f"{name}.double", [(64, 1), (96, 3), (96, 3)]),
    ]
    return net.concat(branches, name)


def _v4_reduce_a(net: _Inception, x: Tensor, name: str) -> Tensor:
    branches = [
        net.shrink(x, f"{name}.pool"),
        net.unit(x, f"{name}.three", 384, 3, 2),
        net.chain(x, f"{name}.double", [(192, 1), (224, 3), (256, 3)], stride=2),
    ]
    return net.concat(branches, name)


def _v4_b(net: _Inception, x: Tensor, name: str) -> Tensor:
    double: Layers = [(192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1))]
    branches = [
        net.pooled(x, f"{name}.pooled", 128),
        net.unit(x, f"{name}.single", 384, 1),
        net.chain(x, f"{name}.seven", [(192, 1), (224, (1, 7)), (256, (7, 1))]),
        net.chain(x, f"{name}.double", double),
    ]
    return net.concat(branches, name)


def _v4_reduce_b(net: _Inception, x: Tensor, name: str) -> Tensor:
    branches = [
        net.shrink(x, f"{name}.pool"),
        net.chain(x, f"{name}.three", [(192, 1), (192, 3)], stride=2),
        net.chain(x, f"{name}.seven", [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3)], stride=2),
    ]
    return net.concat(branches, name)


def _v4_c(net: _Inception, x: Tensor, name: str) -> Tensor:
    three = net.unit(x, f"{name}.three", 384, 1)
    double = net.chain(x, f"{name}.double", [(384, 1), (448, (1, 3)), (512, (3, 1))])
    branches = [
        net.pooled(x, f"{name}.pooled", 256),
        net.unit(x, f"{name}.single", 256, 1),
        *net.fork(three, f"{name}.three", 256, 256, ((1, 3), (3, 1))),
        *net.fork(double, f"{name}.double", 256, 256, ((3, 1), (1, 3))),
    ]
    return net.concat(branches, name)

"""Residual networks (He et al., 2015) and ResNeXt (Xie et al., 2016)."""

from __future__ import annotations

import onnx

from benchmarks.zoo.builder import GraphBuilder, Tensor, scale_channels, scale_depth

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Layers to blocks per stage; from 50 on a block is a bottleneck."""


def resnet(
    layers: int = 50,
    batch: int = 1,
    image: int = 224,
    width: float = 1.0,
    depth: float = 1.0,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """ResNet in the v1.5 form everybody deploys: stride in the 3x3 convolution."""
    net = GraphBuilder(f"resnet{layers}", (batch, 3, image, image), seed)
    return _residual(net, layers, (width, depth), 1, classes)


def resnext50(
    batch: int = 1, image: int = 224, width: float = 1.0, depth: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """ResNeXt-50 32x4d: the 3x3 convolutions in 32 groups."""
    net = GraphBuilder("resnext50", (batch, 3, image, image), seed)
    return _residual(net, 50, (width, depth), max(2, round(32 * width)), classes)


def _residual(net: GraphBuilder, layers: int, scale: tuple[float, float], groups: int, classes: int) -> onnx.ModelProto:
    width, depth = scale
    x = net.relu(net.conv_bn(net.input, "conv1", scale_channels(64, width), 7, stride=2), "conv1/relu")
    x = net.max_pool(x, "maxpool", 3, 2)
    for stage, blocks in enumerate(_STAGES[layers], start=1):
        channels = scale_channels(64 << (stage - 1), width)
        for block in range(scale_depth(blocks, depth)):
            stride, name = 2 if stage > 1 and block == 0 else 1, f"layer{stage}.{block}"
            if layers < 50:
                x = _basic(net, x, name, channels, stride)
            else:
                x = _bottleneck(net, x, name, channels, stride, groups)
    return net.finish(net.classifier(x, classes))


def _basic(net: GraphBuilder, x: Tensor, name: str, width: int, stride: int) -> Tensor:
    y = net.relu(net.conv_bn(x, f"{name}.conv1", width, 3, stride), f"{name}.relu1")
    y = net.conv_bn(y, f"{name}.conv2", width, 3, branch=True)
    return _join(net, x, y, name, stride)


def _bottleneck(net: GraphBuilder, x: Tensor, name: str, width: int, stride: int, groups: int) -> Tensor:
    inner = width if groups == 1 else 2 * width
    y = net.relu(net.conv_bn(x, f"{name}.conv1", inner, 1), f"{name}.relu1")
    y = net.relu(net.conv_bn(y, f"{name}.conv2", inner, 3, stride, groups=groups), f"{name}.relu2")
    y = net.conv_bn(y, f"{name}.conv3", 4 * width, 1, branch=True)
    return _join(net, x, y, name, stride)


def _join(net: GraphBuilder, x: Tensor, y: Tensor, name: str, stride: int) -> Tensor:
    project = stride > 1 or x.channels != y.channels
    shortcut = net.conv_bn(x, f"{name}.downsample", y.channels, 1, stride) if project else x
    return net.relu(net.add(y, shortcut, f"{name}.add"), f"{name}.relu3")

"""VGG (Simonyan and Zisserman, 2014), SqueezeNet (Iandola et al., 2016), DenseNet (Huang et al., 2016) and
ShuffleNet v2 (Ma et al., 2018).
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.builder import GraphBuilder, Tensor, scale_channels, scale_depth


def vgg16(batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """VGG-16: 13 convolutions with bias, two dense layers of 4096; 138 million weights."""
    net = GraphBuilder("vgg16", (batch, 3, image, image), seed, true_size=True)
    x = net.input
    for stage, (repeats, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], start=1):
        for index in range(1, repeats + 1):
            name = f"conv{stage}_{index}"
            x = net.relu(net.conv(x, name, scale_channels(channels, width), 3), f"{name}/relu")
        x = net.max_pool(x, f"pool{stage}", 2, 2, pad=0)
    x = net.flatten(x, "flatten")
    for name in ("fc6", "fc7"):
        x = net.relu(net.dense(x, name, scale_channels(4096, width)), f"{name}/relu")
    return net.finish(net.logits(x, classes))


def squeezenet(
    batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """SqueezeNet 1.1: eight fire modules, and logits that are the means of a convolution's channels."""
    net = GraphBuilder("squeezenet1_1", (batch, 3, image, image), seed)
    x = net.relu(net.conv(net.input, "conv1", scale_channels(64, width), 3, 2, pad=0), "conv1/relu")
    squeezed = [16, 16, 32, 32, 48, 48, 64, 64]
    for index, channels in enumerate(squeezed, start=2):
        if index in (2, 4, 6):
            x = net.max_pool(x, f"pool{index}", 3, 2, pad=0, ceil=True)
        x = _fire(net, x, f"fire{index}", scale_channels(channels, width))
    x = net.relu(net.conv(x, "conv10", classes, 1), "conv10/relu")
    return net.finish(net.flatten(net.global_pool(x, "pool"), "logits"))


def _fire(net: GraphBuilder, x: Tensor, name: str, squeezed: int) -> Tensor:
    x = net.relu(net.conv(x, f"{name}.squeeze", squeezed, 1), f"{name}.squeeze/relu")
    branches = [
        net.relu(net.conv(x, f"{name}.expand{kernel}", 4 * squeezed, kernel), f"{name}.expand{kernel}/relu")
        for kernel in (1, 3)
    ]
    return net.concat(branches, name)


def densenet121(
    batch: int = 1, image: int = 224, width: float = 1.0, depth: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """DenseNet-121: batch norm and ReLU in front of every convolution, each reading all maps before it."""
    growth = scale_channels(32, width)
    net = GraphBuilder("densenet121", (batch, 3, image, image), seed)
    x = net.relu(net.conv_bn(net.input, "conv0", 2 * growth, 7, 2), "conv0/relu")
    x = net.max_pool(x, "pool0", 3, 2)
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, scale_depth(layers, depth) + 1):
            name = f"block{block}.{layer}"
            y = net.relu(net.batch_norm(x, f"{name}/bn"), f"{name}/relu")
            y = net.relu(net.conv_bn(y, f"{name}.conv1", 4 * growth, 1), f"{name}.relu1")
            y = net.plain_conv(y, f"{name}.conv2", growth, 3)
            x = net.concat([x, y], f"{name}.concat")
        x = net.relu(net.batch_norm(x, f"norm{block}"), f"norm{block}/relu")
        if block < 4:
            x = net.plain_conv(x, f"transition{block}", x.channels // 2, 1)
            x = net.average_pool(x, f"transition{block}/pool", 2, 2)
    return net.finish(net.classifier(x, classes))


def shufflenet_v2(
    batch: int = 1, image: int = 224, width: float = 1.0, depth: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """ShuffleNet v2 1.0x: units on one half of the channels, which a shuffle mixes with the other half."""
    net = GraphBuilder("shufflenet_v2", (batch, 3, image, image), seed, true_size=True)
    x = net.relu(net.conv_bn(net.input, "conv1", scale_channels(24, width, 2), 3, 2), "conv1/relu")
    x = net.max_pool(x, "maxpool", 3, 2)
    for stage, (channels, repeats) in enumerate([(116, 4), (232, 8), (464, 4)], start=2):
        half = scale_channels(channels, width, 4) // 2
        for unit in range(scale_depth(repeats, depth)):
            name = f"stage{stage}.{unit}"
            if unit == 0:
                left = net.conv_bn(x, f"{name}.left.depthwise", x.channels, 3, 2, groups=x.channels)
                left = net.relu(net.conv_bn(left, f"{name}.left.pointwise", half, 1), f"{name}.left/relu")
                right = x
            else:
                left, right = net.halves(x, f"{name}.split")
            right = _shuffle_unit(net, right, f"{name}.right", half, 2 if unit == 0 else 1)
            x = net.channel_shuffle(net.concat([left, right], f"{name}.concat"), f"{name}.shuffle", 2)
    x = net.relu(net.conv_bn(x, "conv5", scale_channels(1024, width), 1), "conv5/relu")
    return net.finish(net.classifier(x, classes))


def _shuffle_unit(net: GraphBuilder, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    x = net.relu(net.conv_bn(x, f"{name}.expand", channels, 1), f"{name}.expand/relu")
    x = net.conv_bn(x, f"{name}.depthwise", channels, 3, stride, groups=channels)
    return net.relu(net.conv_bn(x, f"{name}.project", channels, 1), f"{name}.project/relu")

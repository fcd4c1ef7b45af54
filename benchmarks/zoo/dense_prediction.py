"""Segmentation: DeepLab v3 (Chen et al., 2017), U-Net (Ronneberger et al., 2015). Super-resolution: ESPCN (Shi et al.,
2016), FSRCNN (Dong et al., 2016), EDSR (Lim et al., 2017).
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.builder import GraphBuilder, Kernel, Tensor, scale_channels
from benchmarks.zoo.mobilenet import mobilenet_v2_blocks


def deeplab_v3(
    batch: int = 1, image: int = 513, width: float = 1.0, classes: int = 21, seed: int = 0
) -> onnx.ModelProto:
    """DeepLab v3 on MobileNet v2 with output stride 16, dilations 6, 12 and 18; output of the input's size."""
    net = GraphBuilder("deeplab_v3", (batch, 3, image, image), seed, true_size=True)
    depth = scale_channels(256, width)

    def unit(x: Tensor, name: str, kernel: Kernel, dilation: int = 1) -> Tensor:
        return net.relu(net.conv_bn(x, name, depth, kernel, dilation=dilation), f"{name}/relu")

    x = mobilenet_v2_blocks(net, width, output_stride=16)
    height, breadth = x.value.shape[2:]
    pooled = unit(net.global_pool(x, "aspp.pool"), "aspp.pooled", 1)
    branches = [
        unit(x, "aspp.single", 1),
        *[unit(x, f"aspp.dilated{dilation}", 3, dilation) for dilation in (6, 12, 18)],
        net.resize(pooled, "aspp.resize", (height, breadth), "linear"),
    ]
    x = unit(net.concat(branches, "aspp.concat"), "aspp.project", 1)
    x = net.conv(unit(x, "head", 3), "scores", classes, 1, mean=0.0)
    return net.finish(net.resize(x, "logits", (image, image), "linear"))


def unet(batch: int = 1, image: int = 256, width: float = 1.0, classes: int = 1, seed: int = 0) -> onnx.ModelProto:
    """U-Net with padded convolutions, batch norm and 32 channels at full size (Buda et al., 2019).

    The paper's has twice the channels: ``width=2.0``.
    """
    net = GraphBuilder("unet", (batch, 3, image, image), seed, true_size=True)

    def block(x: Tensor, name: str, channels: int) -> Tensor:
        for part in (1, 2):
            x = net.relu(net.conv_bn(x, f"{name}.conv{part}", channels, 3), f"{name}.relu{part}")
        return x

    channels = [scale_channels(32 << level, width) for level in range(5)]
    x, skips = net.input, []
    for level, count in enumerate(channels[:-1], start=1):
        x = block(x, f"encoder{level}", count)
        skips.append(x)
        x = net.max_pool(x, f"pool{level}", 2, 2, pad=0)
    x = block(x, "bottleneck", channels[-1])
    for level, count in reversed(list(enumerate(channels[:-1], start=1))):
        x = net.conv_transpose(x, f"up{level}", count, 2, 2)
        x = block(net.concat([x, skips[level - 1]], f"concat{level}"), f"decoder{level}", count)
    return net.finish(net.conv(x, "logits", classes, 1, mean=0.0))


def espcn(batch: int = 1, image: int = 224, width: float = 1.0, factor: int = 3, seed: int = 0) -> onnx.ModelProto:
    """ESPCN on luminance, with the ReLUs and the additional layer of PyTorch's well known example."""
    net = GraphBuilder("espcn", (batch, 1, image, image), seed, true_size=True)
    x = net.input
    for index, (channels, kernel) in enumerate([(64, 5), (64, 3), (32, 3)], start=1):
        x = net.relu(net.conv(x, f"conv{index}", scale_channels(channels, width), kernel), f"conv{index}/relu")
    x = net.conv(x, "conv4", factor**2, 3, mean=0.0)
    return net.finish(net.depth_to_space(x, "upscaled", factor))


def fsrcnn(batch: int = 1, image: int = 224, width: float = 1.0, factor: int = 3, seed: int = 0) -> onnx.ModelProto:
    """FSRCNN(56, 12, 4) on luminance: PReLU, and a 9x9 transposed convolution at the end."""
    net = GraphBuilder("fsrcnn", (batch, 1, image, image), seed, true_size=True)
    x = net.input
    for index, (channels, kernel) in enumerate([(56, 5), (12, 1), *[(12, 3)] * 4, (56, 1)], start=1):
        x = net.prelu(net.conv(x, f"conv{index}", scale_channels(channels, width, 4), kernel), f"conv{index}/prelu")
    return net.finish(net.conv_transpose(x, "upscaled", 1, 9, factor, pad=4, output_pad=factor - 1))


def edsr(
    batch: int = 1, image: int = 128, width: float = 1.0, blocks: int = 16, factor: int = 2, seed: int = 0
) -> onnx.ModelProto:
    """EDSR, the baseline of 64 channels: 16 residual blocks without batch norm."""
    net = GraphBuilder("edsr", (batch, 3, image, image), seed, true_size=True)
    channels = scale_channels(64, width)
    head = x = net.conv(net.input, "head", channels, 3, mean=0.0)
    for index in range(1, blocks + 1):
        y = net.relu(net.conv(x, f"block{index}.conv1", channels, 3), f"block{index}.relu")
        y = net.conv(y, f"block{index}.conv2", channels, 3, mean=0.0, branch=True)
        x = net.add(x, y, f"block{index}.add")
    x = net.add(net.conv(x, "body", channels, 3, mean=0.0), head, "body.add")
    x = net.depth_to_space(net.conv(x, "up", channels * factor**2, 3, mean=0.0), "shuffle", factor)
    return net.finish(net.conv(x, "tail", 3, 3, mean=0.0))

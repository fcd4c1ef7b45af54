"""Detectors: SSD (Liu et al., 2015) on VGG-16 and MobileNet v1, and YOLOv3-tiny (Redmon and Farhadi, 2018).

Outputs are what the convolutions predict, before boxes are decoded and suppressed.
"""

from __future__ import annotations

import onnx

from benchmarks.zoo.builder import GraphBuilder, Tensor, scale_channels
from benchmarks.zoo.mobilenet import mobilenet_v1_blocks


def ssd_vgg16(
    batch: int = 1, image: int = 300, width: float = 1.0, classes: int = 21, seed: int = 0
) -> onnx.ModelProto:
    """SSD300 on VGG-16; outputs "loc" [batch, 8732, 4] and "conf" [batch, 8732, classes]."""
    net = GraphBuilder("ssd_vgg16", (batch, 3, image, image), seed, true_size=True)

    def unit(x: Tensor, name: str, channels: int, kernel: int, stride: int = 1, **window) -> Tensor:
        return net.relu(net.conv(x, name, scale_channels(channels, width), kernel, stride, **window), f"{name}/relu")

    x, sources = net.input, []
    for stage, (repeats, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], start=1):
        for index in range(1, repeats + 1):
            x = unit(x, f"conv{stage}_{index}", channels, 3)
        if stage == 4:
            sources.append(net.l2_norm(x, "conv4_3/norm"))
        kernel, stride, pad = (2, 2, 0) if stage < 5 else (3, 1, 1)
        x = net.max_pool(x, f"pool{stage}", kernel, stride, pad, ceil=stage == 3)
    x = unit(unit(x, "conv6", 1024, 3, dilation=6), "conv7", 1024, 1)
    sources.append(x)
    extras = [(256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)]
    for index, (squeezed, channels, stride, pad) in enumerate(extras, start=8):
        x = unit(x, f"conv{index}_1", squeezed, 1)
        x = unit(x, f"conv{index}_2", channels, 3, stride, pad=pad)
        sources.append(x)
    return net.finish(*_heads(net, sources, (4, 6, 6, 6, 4, 4), classes, 3))


def ssd_mobilenet_v1(
    batch: int = 1, image: int = 300, width: float = 1.0, classes: int = 91, seed: int = 0
) -> onnx.ModelProto:
    """SSD300 on MobileNet v1; outputs "loc" [batch, 1917, 4] and "conf" [batch, 1917, classes]."""
    net = GraphBuilder("ssd_mobilenet_v1", (batch, 3, image, image), seed, true_size=True)
    blocks = mobilenet_v1_blocks(net, width)
    x, sources = blocks[-1], [blocks[10], blocks[-1]]
    for index, (squeezed, channels) in enumerate([(256, 512), (128, 256), (128, 256), (64, 128)], start=14):
        for part, (depth, kernel, stride) in enumerate([(squeezed, 1, 1), (channels, 3, 2)], start=1):
            name = f"conv{index}_{part}"
            x = net.relu6(net.conv_bn(x, name, scale_channels(depth, width), kernel, stride), f"{name}/relu6")
        sources.append(x)
    return net.finish(*_heads(net, sources, (3, 6, 6, 6, 6, 6), classes, 1))


def _heads(net: GraphBuilder, sources: list[Tensor], boxes: tuple[int, ...], classes: int, kernel: int) -> list[Tensor]:
    """Predict 4 offsets and `classes` scores per box: convolutions, made pixel-major, in one row per image."""
    outputs = []
    for head, size in (("loc", 4), ("conf", classes)):
        rows = []
        for index, (source, count) in enumerate(zip(sources, boxes, strict=True)):
            name = f"{head}{index}"
            x = net.conv(source, name, count * size, kernel, mean=0.0)
            x = net.transpose(x, f"{name}/transpose", (0, 2, 3, 1))
            rows.append(net.reshape(x, f"{name}/row", (x.value[0].size,)))
        x = net.concat(rows, f"{head}/concat")
        outputs.append(net.reshape(x, head, (x.channels // size, size)))
    return outputs


def yolov3_tiny(
    batch: int = 1, image: int = 416, width: float = 1.0, classes: int = 80, seed: int = 0
) -> onnx.ModelProto:
    """YOLOv3-tiny; outputs "coarse" and "fine", [batch, 3 * (classes + 5), image / 32 and image / 16, ...]."""
    net = GraphBuilder("yolov3_tiny", (batch, 3, image, image), seed, true_size=True)

    def unit(x: Tensor, name: str, channels: int, kernel: int) -> Tensor:
        return net.leaky_relu(net.conv_bn(x, name, scale_channels(channels, width), kernel), f"{name}/leaky")

    x = net.input
    for index, channels in enumerate((16, 32, 64, 128, 256), start=1):
        route = x = unit(x, f"conv{index}", channels, 3)
        x = net.max_pool(x, f"pool{index}", 2, 2, pad=0)
    x = net.max_pool(unit(x, "conv6", 512, 3), "pool6", 2, 1, pad=(0, 0, 1, 1))
    trunk = unit(unit(x, "conv7", 1024, 3), "conv8", 256, 1)
    coarse = net.conv(unit(trunk, "conv9", 512, 3), "coarse", 3 * (classes + 5), 1, mean=0.0)
    x = unit(trunk, "conv10", 128, 1)
    x = net.resize(x, "upsample", (route.value.shape[2], route.value.shape[3]), "nearest")
    x = unit(net.concat([x, route], "concat"), "conv11", 256, 3)
    return net.finish(coarse, net.conv(x, "fine", 3 * (classes + 5), 1, mean=0.0))

"""MobileNets (Howard et al., 2017; Sandler et al., 2018; Howard et al., 2019) and EfficientNet (Tan and Le, 2019)."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from benchmarks.zoo.builder import GraphBuilder, Tensor, scale_channels, scale_depth

Activation = Callable[[Tensor, str], Tensor]


def mobilenet_v1(
    batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNet v1: 13 depthwise-separable blocks with ReLU6; widths 1.0, 0.75, 0.5 and 0.25 are common."""
    net = GraphBuilder("mobilenet_v1", (batch, 3, image, image), seed)
    *_, last = mobilenet_v1_blocks(net, width)
    return net.finish(net.classifier(last, classes))


def mobilenet_v1_blocks(net: GraphBuilder, width: float) -> list[Tensor]:
    """Write MobileNet v1 up to its last convolution; return the outputs of its 13 blocks."""

    def scaled(channels: int) -> int:
        return max(8, int(channels * width + 0.5))

    x = net.relu6(net.conv_bn(net.input, "conv0", scaled(32), 3, stride=2), "conv0/relu6")
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    outputs = []
    for index, (channels, stride) in enumerate(blocks, start=1):
        x = separable(net, x, f"block{index}", scaled(channels), stride)
        outputs.append(x)
    return outputs


def separable(net: GraphBuilder, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    """Depthwise 3x3 and pointwise convolution, ReLU6 behind both."""
    x = net.conv_bn(x, f"{name}.depthwise", x.channels, 3, stride, groups=x.channels)
    x = net.relu6(x, f"{name}.depthwise/relu6")
    return net.relu6(net.conv_bn(x, f"{name}.pointwise", channels, 1), f"{name}.pointwise/relu6")


def mobilenet_v2(
    batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNet v2: 17 inverted residuals with linear bottlenecks, ReLU6 inside."""
    net = GraphBuilder("mobilenet_v2", (batch, 3, image, image), seed)
    x = mobilenet_v2_blocks(net, width)
    x = net.relu6(net.conv_bn(x, "conv18", scale_channels(1280, max(width, 1.0)), 1), "conv18/relu6")
    return net.finish(net.classifier(x, classes))


def mobilenet_v2_blocks(net: GraphBuilder, width: float, output_stride: int = 32) -> Tensor:
    """Write MobileNet v2 up to its last bottleneck; strides beyond `output_stride` become dilations."""
    x = net.relu6(net.conv_bn(net.input, "conv0", scale_channels(32, width), 3, stride=2), "conv0/relu6")
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    index, reached, dilation = 0, 2, 1
    for expansion, channels, repeats, stage_stride in stages:
        for repeat in range(repeats):
            stride, before = stage_stride if repeat == 0 else 1, dilation
            if reached * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reached, index = reached * stride, index + 1
            channels_out, inner = scale_channels(channels, width), expansion * x.channels
            x = _inverted_residual(net, x, f"block{index}", channels_out, inner, net.relu6, 3, stride, dilation=before)
    return x


def mobilenet_v3_large(
    batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNet v3 large: hard-swish, and squeeze-and-excitation gated by hard-sigmoid."""
    net = GraphBuilder("mobilenet_v3_large", (batch, 3, image, image), seed)
    x = net.hard_swish(net.conv_bn(net.input, "conv0", scale_channels(16, width), 3, stride=2), "conv0/hard_swish")
    blocks = [  # kernel, expanded channels, channels, squeeze-and-excitation, hard-swish, stride
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        *[(5, 120, 40, True, False, 1)] * 2,
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        *[(3, 184, 80, False, True, 1)] * 2,
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        *[(5, 960, 160, True, True, 1)] * 2,
    ]

    def excite(x: Tensor, name: str) -> Tensor:
        reduced = scale_channels(x.channels // 4, 1.0)
        return squeeze_excite(net, x, name, reduced, net.relu, net.hard_sigmoid)

    for index, (kernel, expanded, channels, excited, swish, stride) in enumerate(blocks, start=1):
        channels, inner = scale_channels(channels, width), scale_channels(expanded, width)
        act = net.hard_swish if swish else net.relu
        gate = excite if excited else None
        x = _inverted_residual(net, x, f"block{index}", channels, inner, act, kernel, stride, gate=gate)
    x = net.hard_swish(net.conv_bn(x, "conv16", scale_channels(960, width), 1), "conv16/hard_swish")
    x = net.flatten(net.global_pool(x, "pool"), "flatten")
    x = net.hard_swish(net.dense(x, "fc1", scale_channels(1280, width)), "fc1/hard_swish")
    return net.finish(net.logits(x, classes))


def efficientnet_b0(
    batch: int = 1, image: int = 224, width: float = 1.0, depth: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """EfficientNet-B0: SiLU, and squeeze-and-excitation gated by a sigmoid in every block."""
    net = GraphBuilder("efficientnet_b0", (batch, 3, image, image), seed)
    x = net.silu(net.conv_bn(net.input, "conv0", scale_channels(32, width), 3, stride=2), "conv0/silu")
    stages = [  # expansion, kernel, stride, channels, repeats
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ]
    index = 0
    for expansion, kernel, stage_stride, channels, repeats in stages:
        for repeat in range(scale_depth(repeats, depth)):
            index += 1
            reduced, stride = max(1, x.channels // 4), stage_stride if repeat == 0 else 1

            def excite(y: Tensor, name: str, reduced: int = reduced) -> Tensor:
                return squeeze_excite(net, y, name, reduced, net.silu, net.sigmoid)

            channels_out, inner = scale_channels(channels, width), expansion * x.channels
            x = _inverted_residual(net, x, f"block{index}", channels_out, inner, net.silu, kernel, stride, gate=excite)
    x = net.silu(net.conv_bn(x, "conv17", scale_channels(1280, width), 1), "conv17/silu")
    return net.finish(net.classifier(x, classes))


def squeeze_excite(net: GraphBuilder, x: Tensor, name: str, reduced: int, act: Activation, gate: Activation) -> Tensor:
    """Multiply every channel by a gate computed from all channels' means (Hu et al., 2017)."""
    y = net.global_pool(x, f"{name}/pool")
    y = act(net.excitation_conv(y, f"{name}/reduce", reduced), f"{name}/act")
    y = gate(net.excitation_conv(y, f"{name}/expand", x.channels, mean=1.0), f"{name}/gate")
    return net.multiply(x, y, name)


def _inverted_residual(
    net: GraphBuilder,
    x: Tensor,
    name: str,
    channels: int,
    inner: int,
    act: Activation,
    kernel: int,
    stride: int,
    gate: Activation | None = None,
    dilation: int = 1,
) -> Tensor:
    """Expand to `inner` channels, filter depthwise, gate, project; and add the input where shapes allow."""
    y = x
    if inner != x.channels:
        y = act(net.conv_bn(y, f"{name}.expand", inner, 1), f"{name}.expand/act")
    y = net.conv_bn(y, f"{name}.depthwise", inner, kernel, stride, groups=inner, dilation=dilation)
    y = act(y, f"{name}.depthwise/act")
    if gate is not None:
        y = gate(y, f"{name}.excite")
    joined = stride == 1 and channels == x.channels
    y = net.conv_bn(y, f"{name}.project", channels, 1, branch=joined)
    return net.add(x, y, f"{name}.add") if joined else y

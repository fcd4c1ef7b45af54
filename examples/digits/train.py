"""Train the demo's ResNet-8 on handwritten digits and write it as ONNX: ``python train.py [resnet8_digits.onnx]``.

Needs torch and onnx; about two minutes on one core. The ONNX file is checked in, so only someone who changes the
network runs this; it printed an accuracy of 0.9900 on the calibration part and of 0.9850 on the held-out one.

The network is the ResNet-8 of MLPerf Tiny with one input channel: a 3x3 stem, three basic blocks of 16, 32 and 64
channels (the last two with stride 2 and a 1x1 projection), global average pooling, one dense layer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

import data

EPOCHS, BATCH = 24, 32


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 projection where the shape changes."""

    def __init__(self, ic: int, oc: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ic, oc, 3, stride, 1, bias=False), nn.BatchNorm2d(oc)
        self.conv2, self.bn2 = nn.Conv2d(oc, oc, 3, 1, 1, bias=False), nn.BatchNorm2d(oc)
        self.project = nn.Conv2d(ic, oc, 1, stride, bias=False) if (ic, stride) != (oc, 1) else None
        self.bn_project = nn.BatchNorm2d(oc) if self.project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, ic, H, W] to [N, oc, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (self.bn_project(self.project(x)) if self.project and self.bn_project else x))


class ResNet8(nn.Module):
    """ResNet-8 for [N, 1, 64, 64] images and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList([BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)])
        self.dense = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 [N, 10]."""
        x = functional.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean((2, 3)))


def augment(x: torch.Tensor) -> torch.Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 % and shift by up to 6 % of the width, each image by itself."""
    n = len(x)
    uniform = torch.rand(n, 4) * 2 - 1
    angle, scale = uniform[:, 0] * 0.17, 1 + 0.1 * uniform[:, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, 0.12 * uniform[:, 2], sin, cos, 0.12 * uniform[:, 3]], 1)
    grid = functional.affine_grid(rows.view(n, 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def accuracy(network: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Share of images whose largest logit is the label's."""
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(1) for part in torch.from_numpy(x).split(100)])
    return float((predicted.numpy() == y).mean())


def train() -> ResNet8:
    """Train from a fixed seed on one thread and return the network in evaluation mode."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = ResNet8()
    x, y = (torch.from_numpy(part) for part in data.train())
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for epoch in range(EPOCHS):
        start, total = time.perf_counter(), 0.0
        network.train()
        for index in torch.randperm(len(x)).split(BATCH):
            loss = functional.cross_entropy(network(augment(x[index])), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        watched = accuracy(network, *data.calibration())
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / len(x):.4f}  calibration part {watched:.4f}  {seconds:.1f} s"
        )
    return network.eval()


class OnnxWriter:
    """Collects ONNX nodes and weights; every method adds one layer and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: torch.Tensor) -> str:
        """Add one float32 initializer."""
        self.weights.append(numpy_helper.from_array(value.detach().numpy().astype(np.float32), name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes) -> str:
        """Add one node with one output, called like the node."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv_bn(self, name: str, x: str, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> str:
        """Add a convolution and its batch normalisation, not folded: folding is the compiler's work."""
        (kernel, _), (stride, _), (pad, _) = conv.kernel_size, conv.stride, conv.padding
        weight = self.weight(f"{name}.weight", conv.weight)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        y = self.node("Conv", f"{name}.conv", [x, weight], **attributes)
        statistics = {"scale": bn.weight, "bias": bn.bias, "mean": bn.running_mean, "var": bn.running_var}
        inputs = [self.weight(f"{name}.bn.{key}", value) for key, value in statistics.items()]
        return self.node("BatchNormalization", f"{name}.bn", [y, *inputs], epsilon=bn.eps)


def to_onnx(network: ResNet8) -> onnx.ModelProto:
    """Write the network as ONNX, opset 17: input "image" float32 [1, 1, 64, 64], output "logits" float32 [1, 10]."""
    w = OnnxWriter()
    x = w.node("Relu", "stem.relu", [w.conv_bn("stem", "image", network.stem, network.bn)])
    for i, block in enumerate(network.blocks, 1):
        shortcut = w.conv_bn(f"block{i}.project", x, block.project, block.bn_project) if block.project else x
        y = w.node("Relu", f"block{i}.relu1", [w.conv_bn(f"block{i}.conv1", x, block.conv1, block.bn1)])
        y = w.conv_bn(f"block{i}.conv2", y, block.conv2, block.bn2)
        x = w.node("Relu", f"block{i}.relu2", [w.node("Add", f"block{i}.add", [y, shortcut])])
    x = w.node("Flatten", "flatten", [w.node("GlobalAveragePool", "pool", [x])], axis=1)
    dense = [w.weight("dense.weight", network.dense.weight), w.weight("dense.bias", network.dense.bias)]
    w.nodes.append(helper.make_node("Gemm", [x, *dense], ["logits"], name="dense", transB=1))

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, data.SIZE, data.SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(w.nodes, "resnet8_digits", [image], [logits], w.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, print the accuracies and write the ONNX file."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("resnet8_digits.onnx")
    network = train()
    print(f"held out: accuracy {accuracy(network, *data.held_out()):.4f}")
    onnx.save(to_onnx(network), path)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

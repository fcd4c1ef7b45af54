"""Analyses without a network behind them, and a network that is quick to analyse."""

from __future__ import annotations

import numpy as np
import onnx

from tests.small_networks import Network
from tvm_int8.analysis.analysis import Analysis
from tvm_int8.analysis.results import ActivationAnalysis, Distribution, LayerAnalysis, Suggestion, WeightAnalysis

NAME = '/block.0/<conv>&"q"$x$[1]'


def layer(index: int, saturation: float = 0.0, **changes) -> LayerAnalysis:
    spread = Distribution(-1.0, 2.0, (1, 0, 30, 5, 2))
    weight = WeightAnalysis(-0.5, 0.25, 40.0, Distribution(-127.5, 127.5, (1, 8, 1)))
    activation = ActivationAnalysis(f"tensor{index}", -1.0, 1.5, "mse", saturation, spread)
    sqnr_db = 40.0 - index % 7
    values = dict(layer=f"{NAME}{index}", op="nn.conv2d", sqnr_db=sqnr_db, alone_db=45.0 + index, without_db=30.0)
    values |= dict(share=1 / (index + 2), int8_time=2.0, float_time=9.0, weight=weight, activation=activation)
    return LayerAnalysis(**{**values, **changes})


def made_up(layers: list[LayerAnalysis], suggestions: int = 2, unit: str = "us") -> Analysis:
    names = [each.layer for each in layers]
    steps = tuple(
        Suggestion(names[i], 1.5, 30.0 + 1.5 * (i + 1), 7.0, 0.1, 0.1 * (i + 1), tuple(names[: i + 1]))
        for i in range(min(suggestions, len(names)))
    )
    return Analysis(tuple(layers), steps, 30.0, 8, unit, 70.0, 210.0, "made up", {"head": "excluded"})


def network() -> onnx.ModelProto:
    """Three convolutions, one of them called `NAME`, and a dense layer."""
    net = Network(x=(1, 3, 10, 10))
    y = net.relu(net.norm(net.conv("x", 16)))
    y = net.relu(net.norm(net.conv(y, 16, groups=16)))
    y = net.relu(net.norm(net.conv(y, 20, stride=2)))
    model = net.finish(net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 20, 6))
    model.graph.node[0].name = NAME
    return model


def images(count: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, 10, 10)).astype(np.float32)

"""Networks by name, each with inputs to run and calibrate it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import generate, images, onnx_graph
from benchmarks.light_models import LIGHT_MODELS, light_inputs, light_model

GENERATED: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50_v1": generate.resnet50,
    "mobilenet_v1": generate.mobilenet_v1,
    "mobilenet_v1_050": lambda: generate.mobilenet_v1(alpha=0.5),
    "mobilenet_v1_025": lambda: generate.mobilenet_v1(alpha=0.25),
}
"""Name to the function that builds the network."""


@dataclass(frozen=True)
class Network:
    """A network and where its inputs come from.

    Attributes
    ----------
    name : str
        For tables.
    model : onnx.ModelProto
        With one input.
    inputs : callable
        ``inputs(count, seed)`` returns that many inputs.
    """

    name: str
    model: onnx.ModelProto
    inputs: Callable[[int, int], list[np.ndarray]]


def load_network(name: str, cache_dir: Path | None = None) -> Network:
    """Return a light network, a generated one, or the one in an ``.onnx`` file, which gets synthetic photographs.

    Raises
    ------
    SystemExit
        When the name is none of these; the message lists the names there are.
    """
    if name in LIGHT_MODELS:
        return Network(name, light_model(name, cache_dir), lambda count, seed: light_inputs(name, count, seed))
    if name in GENERATED:
        return _with_synthetic_inputs(name, GENERATED[name]())
    if Path(name).suffix == ".onnx" and Path(name).exists():
        return _with_synthetic_inputs(Path(name).stem, onnx.load(name))
    raise SystemExit(f"{name}: not an .onnx file, and the known networks are {', '.join([*LIGHT_MODELS, *GENERATED])}")


def _with_synthetic_inputs(name: str, model: onnx.ModelProto) -> Network:
    shapes = onnx_graph.input_shapes(model)
    if len(shapes) != 1:
        raise SystemExit(f"{name}: has {len(shapes)} inputs ({', '.join(shapes)}), expected one image")
    batch, *shape = next(iter(shapes.values()))
    if len(shape) != 3:
        raise SystemExit(f"{name}: its input has {len(shape) + 1} dimensions, expected 4 (NCHW)")
    channels, height, width = shape

    def inputs(count: int, seed: int) -> list[np.ndarray]:
        drawn = images.synthetic_images(count * batch, (channels, height, width), seed)
        return [np.concatenate(drawn[i * batch : (i + 1) * batch]) for i in range(count)]

    return Network(name, model, inputs)

"""Networks by name, each with inputs to run and calibrate it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import images, onnx_graph
from benchmarks.light_models import LIGHT_MODELS, light_inputs, light_model
from benchmarks.zoo import ZOO

GROUPS: dict[str, list[str]] = {"light": list(LIGHT_MODELS), "zoo": list(ZOO), "all": [*LIGHT_MODELS, *ZOO]}
"""Name of a group to the names of its networks."""


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


def expand(names: Sequence[str]) -> list[str]:
    """Put a group's networks in the place of its name, each network once."""
    return list(dict.fromkeys(member for name in names for member in GROUPS.get(name, [name])))


def load_network(name: str, cache_dir: Path | None = None) -> Network:
    """Return a light network, one of the zoo, or the one in an ``.onnx`` file, which gets synthetic photographs.

    Networks of the zoo come in any batch size: ``"resnet50_v1@8"`` takes eight images at once.

    Raises
    ------
    SystemExit
        When the name is none of these; the message lists the names there are.
    """
    if name in LIGHT_MODELS:
        return Network(name, light_model(name, cache_dir), lambda count, seed: light_inputs(name, count, seed))
    base, _, batch = name.partition("@")
    if base in ZOO and (base == name or (batch.isdecimal() and int(batch) > 0)):
        return _with_synthetic_inputs(name, ZOO[base](batch=int(batch or 1)))
    if Path(name).suffix == ".onnx" and Path(name).exists():
        return _with_synthetic_inputs(Path(name).stem, onnx.load(name))
    known = f"{', '.join(LIGHT_MODELS)} and, with @BATCH or without, {', '.join(ZOO)}"
    raise SystemExit(f"{name}: not an .onnx file, and the known networks are {known}")


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

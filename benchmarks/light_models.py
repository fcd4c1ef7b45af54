"""The nine networks of ONNX's light model set, with healthy weights in place of the stubs.

The ``onnx`` package ships the graphs of nine well known networks (``onnx/backend/test/data/light``) without their
weights: each is a ConstantOfShape of 0.02, with which every activation is the same number. `light_model` draws real
ones and normalises layer by layer (`benchmarks.initialise`), so that a quantised network can be compared with its
float original. Graph, operator set (9) and quirks (scale/shift pairs, LRN, asymmetric pads, ...) stay as shipped.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx

from benchmarks.images import synthetic_images
from benchmarks.initialise import initialise

LIGHT_MODELS = {
    "alexnet": "light_bvlc_alexnet",
    "densenet121": "light_densenet121",
    "inception_v1": "light_inception_v1",
    "inception_v2": "light_inception_v2",
    "resnet50": "light_resnet50",
    "shufflenet": "light_shufflenet",
    "squeezenet": "light_squeezenet",
    "vgg19": "light_vgg19",
    "zfnet512": "light_zfnet512",
}
"""Short name to file name."""

_SWEEP_SEED = 2024  # seeds 0, 1, ... are left to callers, so the sweep's images are never among their inputs
_SWEEP_IMAGES = 4
_VERSION = 1  # of the drawn weights: part of the name of a cached file


def light_model(name: str, cache_dir: str | Path | None = None) -> onnx.ModelProto:
    """Return one of the light networks with drawn weights.

    Parameters
    ----------
    name : str
        A key of `LIGHT_MODELS`.
    cache_dir : path, optional
        Where to keep the finished model (10 to 570 MB) for the next call.

    Returns
    -------
    onnx.ModelProto
        Input float32 [1, 3, 224, 224]. The same on every call on one machine.

    Raises
    ------
    KeyError
        When there is no network of that name.
    """
    cached = Path(cache_dir) / f"{LIGHT_MODELS[name]}_v{_VERSION}_onnx{onnx.__version__}.onnx" if cache_dir else None
    if cached is not None and cached.exists():
        return onnx.load(str(cached))
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    stub = onnx.load(str(folder / f"{LIGHT_MODELS[name]}.onnx"))
    images = synthetic_images(_SWEEP_IMAGES, seed=_SWEEP_SEED)
    model = initialise(stub, images, seed=zlib.crc32(name.encode()))
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(".partial")
        onnx.save(model, str(partial))
        partial.replace(cached)
    return model


def light_inputs(name: str, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return `count` synthetic photographs for a light network, each float32 [1, 3, 224, 224].

    Two networks get different images for the same seed.
    """
    return synthetic_images(count, seed=zlib.crc32(f"{LIGHT_MODELS[name]}/{seed}".encode()))

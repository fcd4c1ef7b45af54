"""The NumPy interpretation of every kernel order: what a kernel must compute, to the last bit.

`evaluate(spec, inputs, constants)` takes and returns logical NCHW arrays; one module per kind of spec.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

_MODULES = {
    "Conv2d": "conv2d",
    "WinogradConv2d": "winograd_conv2d",
    "Pool2d": "pool2d",
    "Lrn": "lrn",
    "Elementwise": "elementwise",
    "ChannelGather": "channel_gather",
    "Resize2d": "resize2d",
    "DepthToSpace": "depth_to_space",
    "ChannelsLast": "channels_last",
    "Window2d": "window2d",
}


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Evaluate `spec` on logical NCHW `inputs` (dtypes as in the spec); returns the logical NCHW output."""
    module = import_module(f"{__name__}.{_MODULES[type(spec).__name__]}")
    return module.evaluate(spec, inputs, constants)

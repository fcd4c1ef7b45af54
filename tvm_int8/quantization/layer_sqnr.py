"""Signal-to-quantisation-noise ratio of every layer of a compiled network, against the float network."""

from __future__ import annotations

import numpy as np

from tvm_int8.passes.assign_layouts import unpack
from tvm_int8.quantization.sqnr import sqnr_db


def layer_sqnr(module, rows: list[dict], network, batch: dict[str, np.ndarray]) -> list[float | None]:
    """SQNR in dB of the tensor each kernel delivers; None where the float network has no such tensor.

    Parameters
    ----------
    module : CompiledModule
    rows : one per kernel call (see `build.kernel_rows`), with the scale of what it stores
    network : FloatNetwork
    batch : input name -> array
    """
    reference = network(batch)
    found: list[float | None] = []
    for row, array in zip(rows, module.capture(batch), strict=True):
        wanted = reference.get(row["tensor"])
        if wanted is None or (array.dtype != np.float32 and row["stored"] is None):
            found.append(None)
            continue
        value = unpack(array, tuple(row["result"]["shape"])) if row["result"]["block"] else array
        if array.dtype != np.float32:
            scale, zero_point = (np.float32(v).reshape(1, -1, *[1] * (value.ndim - 2)) for v in row["stored"])
            value = (value.astype(np.float32) - zero_point) * scale
        found.append(sqnr_db(wanted.reshape(-1), value.reshape(-1)) if value.size == wanted.size else None)
    return found

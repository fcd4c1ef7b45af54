"""A trained network of few bits: its file is smaller by what `allocate_bits` says, and computes the same."""

from __future__ import annotations

import os

import numpy as np
import pytest

import tvm_int8
from tvm_int8 import QuantizationConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["resnet20_cifar10", "mobilenetv1_025_vww"])
def test_the_file_is_smaller_by_what_was_predicted(name, real_models, tmp_path):
    path, inputs = str(real_models.model_path(name)), np.concatenate(real_models.calibration_batches(name, 16))
    options = {"rounding": "nearest", "winograd": "off"}
    config = QuantizationConfig(**options)
    bits = tvm_int8.allocate_bits(path, inputs, average_bits=4.5, quantization=config, progress=False)
    sizes = []
    for own in (config, QuantizationConfig(bits=bits, **options)):
        module = tvm_int8.compile(path, calibration=inputs, quantization=own, progress=False)
        module.export(tmp_path / "net.so")
        sizes.append(os.path.getsize(tmp_path / "net.so"))
        loaded = tvm_int8.load(tmp_path / "net.so")
        for mine, theirs in zip(loaded(inputs[:1]), module(inputs[:1]), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    predicted = sum(layer.count for layer in bits.weights) - bits.size_bytes
    print(f"{name}: {sizes[0]} - {sizes[1]} = {sizes[0] - sizes[1]} bytes, predicted {predicted}")
    assert sizes[0] - sizes[1] == pytest.approx(predicted, rel=0.02)
    needed = {row.layer: row.weight_bits for row in loaded.report if row.weight_bits is not None}
    assert all(needed[layer.name] <= layer.bits for layer in bits.weights if layer.name in needed)

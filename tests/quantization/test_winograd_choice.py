import dataclasses
import functools
import warnings

import numpy as np
import pytest

from tests.numpy_calibration import NumpyNetwork
from tests.schedules.winograd_testing import winograd_spec
from tests.small_networks import Network, draw
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization import ranges
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.quantize import Quantization, quantize_network
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.winograd_choice import can_be_tiled, tiled_layers, tiled_reads
from tvm_int8.reference import winograd_conv2d
from tvm_int8.schedules.rule import Constants

TILED = {"conv2": "relu1", "conv5": "maxpool4", "conv10": "relu9"}
"""Convolutions that can be tiled, and what they read."""


@functools.cache
def model():
    """They read a point, what a pool delivers, and a tensor that a depthwise convolution leaves uneven."""
    net = Network(x=(1, 3, 16, 16))
    y = net.relu(net.conv(net.relu(net.conv("x", 16)), 24))
    y = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.add("Add", net.conv(y, 16), net.conv(y, 16, kernel=1))
    y = net.relu(net.conv(net.relu(net.conv(y, 16, groups=16)), 20))
    return net.finish(net.conv(y, 16, stride=2), net.conv(y, 8), net.conv(y, 16, dilation=2))


def quantized(calibration="data", **options) -> Quantization:
    data = draw(model(), 8, seed=0) if isinstance(calibration, str) else calibration
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        warnings.simplefilter("ignore", UserWarning)
        return quantize_network(load_model(model()), data, QuantizationConfig(**options), False)


@functools.cache
def default() -> Quantization:
    return quantized()


def widths(found: Quantization) -> dict[str, list[int]]:
    """How many positions have 16 bits, of every candidate."""
    return {name: [len(q.wide) for q in candidates] for name, candidates in found.quantizers.winograd.items()}


def test_what_can_be_tiled():
    flow = Dataflow(default().float_mod)
    calls = {b.var.name: b.value for b in flow.bindings}
    assert [name for name, call in calls.items() if can_be_tiled(call)] == list(TILED)
    assert tiled_reads(calls.values()) == {name: [(1, 1, 1, 1)] for name in TILED.values()}
    assert list(tiled_layers(flow, default().quantizers)) == list(TILED)


def test_calibration_sees_what_is_read_even_where_it_has_no_range_of_its_own():
    assert set(default().table.transformed) == set(TILED.values())
    assert "maxpool4" not in default().table


def test_candidates():
    wide = {name: found[0] for name, found in default().quantizers.winograd.items()}
    assert list(wide) == list(TILED)
    assert all(len(q.wide) == 36 and len(q.weight) == 0 for q in wide.values())
    for found in default().quantizers.winograd.values():
        for q in found[1:]:
            assert 0 < len(q.wide) < 36 and q.loss_db <= 1
    assert any(len(found) == 2 for found in default().quantizers.winograd.values())


def test_more_loss_leaves_fewer_positions_wide():
    least, most = (widths(quantized(winograd_max_loss_db=db)) for db in (-100.0, 6.0))
    assert all(counts == [36] for counts in least.values())
    for name, counts in widths(default()).items():
        assert most[name][-1] < counts[-1]


def test_always_and_off():
    always = quantized(winograd="always")
    assert all(counts[0] == 36 and counts[-1] == 0 for counts in widths(always).values())
    off = quantized(winograd="off")
    assert off.quantizers.winograd == {} and off.table.transformed == {}


def test_a_saved_table_gives_the_same(tmp_path):
    default().table.save(tmp_path / "t.json")
    again = quantized(CalibrationTable.load(tmp_path / "t.json")).quantizers.winograd
    for name, found in default().quantizers.winograd.items():
        for first, second in zip(found, again[name], strict=True):
            assert (first.wide, first.loss_db) == (second.wide, second.loss_db)
            np.testing.assert_array_equal(first.correction, second.correction)
            for constant, same in zip(first.constants().values(), second.constants().values(), strict=True):
                np.testing.assert_array_equal(constant, same)


def test_without_statistics_everything_has_16_bits():
    old = CalibrationTable(dict(default().table))
    for found in (quantized(old), quantized(None)):
        assert widths(found) == {name: [36] for name in TILED}
        assert all(q.loss_db is None for (q,) in found.quantizers.winograd.values())
    assert "not predicted" in str(found.quantizers.winograd["conv2"][0])


def test_weights_of_7_bits_have_no_narrow_products():
    assert widths(quantized(weight_bits=7, winograd="always")) == {name: [36] for name in TILED}


def test_layers_in_fp32_are_left_out():
    assert set(widths(default().without(["/conv5"]))) == {"conv2", "conv10"}


@pytest.mark.parametrize("options", [{}, {"per_channel_activations": False}, {"per_channel_weights": False}], ids=str)
def test_wide_tiles_compute_what_exact_weights_would(options):
    found = quantized(**options)
    exact = NumpyNetwork(found.float_mod, [*TILED, *TILED.values()])(draw(model(), 1, seed=9)[0])
    for name, data in TILED.items():
        weight, reads = found.quantizers.weights[name], found.quantizers.activations[data]
        layer = tiled_layers(Dataflow(found.float_mod), found.quantizers)[name]
        zero_point = int(np.ravel(reads.zero_point)[0])
        integers = np.rint(exact[data] / layer.divisor.reshape(1, -1, 1, 1)) + zero_point
        chosen = found.quantizers.winograd[name][0]
        c, o = integers.shape[1], len(weight.exact)
        options = {"pad_value": zero_point, "wide": chosen.wide, "shifted": chosen.shifted}
        spec = winograd_spec(1, c, o, integers.shape[2:], **options)
        data = np.clip(integers, 0, 255).astype(np.uint8)
        acc = winograd_conv2d.accumulate(spec, data, Constants(**chosen.constants()))
        # The bias says what is left over of the int8 weights' mean error, which these weights do not have.
        step = layer.divisor[0] if reads.factor is None else reads.step
        unit = (layer.scale * step).reshape(1, -1, 1, 1)
        assert sqnr_db(exact[name], acc * unit) > 35
        assert (chosen.correction is None) == (weight.correction is None)
        if weight.correction is not None:
            np.testing.assert_allclose(chosen.correction, -weight.correction.ravel() / unit.ravel(), rtol=1e-6)


def test_a_zero_point_of_every_channel_is_not_for_tiles():
    flow, own = Dataflow(default().float_mod), default().quantizers
    reads = own.activations["relu1"]
    uneven = np.arange(16, dtype=np.int64)
    changed = {**own.activations, "relu1": dataclasses.replace(reads, zero_point=uneven)}
    assert list(tiled_layers(flow, Quantizers(changed, own.weights))) == ["conv5", "conv10"]

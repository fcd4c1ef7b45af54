import dataclasses
import functools
import itertools
import warnings

import numpy as np
import pytest

from tests.numpy_calibration import NumpyNetwork
from tests.schedules.winograd_testing import winograd_spec
from tests.small_networks import Network, draw
from tvm_int8 import winograd
from tvm_int8.config import QuantizationConfig
from tvm_int8.frontend import load_model
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization import ranges, winograd_choice, winograd_quantizer
from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.quantize import Quantization, quantize_network
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.transformed_statistics import TILES
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


def shapes(found: Quantization) -> dict[str, list[tuple]]:
    """Tiles, and how many positions have 16 bits, of every way."""
    ways = found.quantizers.winograd
    return {name: [(way.tile, len(way.wide)) for way in ways[name]] for name in ways}


ALL_WIDE = ((4, 4), 36)


def test_what_can_be_tiled():
    flow = Dataflow(default().float_mod)
    calls = {b.var.name: b.value for b in flow.bindings}
    assert [name for name, call in calls.items() if can_be_tiled(call)] == list(TILED)
    assert tiled_reads(calls.values()) == {name: [(1, 1, 1, 1)] for name in TILED.values()}
    assert list(tiled_layers(flow, default().quantizers)) == list(TILED)


def test_calibration_sees_what_is_read_even_where_it_has_no_range_of_its_own():
    assert set(default().table.transformed) == set(TILED.values())
    assert "maxpool4" not in default().table


def test_one_way_is_all_wide_and_one_of_every_tile_is_within_the_limit():
    limit_db = QuantizationConfig().winograd_max_loss_db
    for ways in default().quantizers.winograd.values():
        first, *others = ways
        assert first.wide == tuple(range(36)) and first.tile == (4, 4) and first.loss_db < limit_db
        assert [way.tile for way in others] == list(TILES)
        assert all(way.loss_db <= limit_db for way in others)
        assert all(len(way.wide) < winograd.positions(way.tile) for way in others)


def test_smaller_tiles_need_fewer_wide_positions():
    for ways in quantized(winograd_max_loss_db=4.0).quantizers.winograd.values():
        shares = [len(way.wide) / winograd.positions(way.tile) for way in ways[1:]]
        assert 1 > shares[0] >= shares[-1]


def test_more_loss_leaves_fewer_positions_wide():
    """With none allowed, a tile of which all positions would be wide is no way: there is a better one."""
    counts = []
    for limit_db in (-100.0, 2.0, 6.0, 100.0):
        found = shapes(quantized(winograd_max_loss_db=limit_db))
        assert all(ways[0] == ALL_WIDE for ways in found.values())
        narrow = {name: dict(ways[1:]) for name, ways in found.items()}
        counts.append([narrow[name].get(tile, winograd.positions(tile)) for name in TILED for tile in TILES])
    for more, fewer in itertools.pairwise(counts):
        assert all(np.array(more) >= fewer) and sum(more) > sum(fewer)
    assert counts[0] == [winograd.positions(tile) for _ in TILED for tile in TILES] and not any(counts[-1])


def test_always_and_off():
    always = shapes(quantized(winograd="always", winograd_max_loss_db=1.0))
    assert all(ways[0] == ALL_WIDE and {(tile, 0) for tile in TILES} < set(ways) for ways in always.values())
    assert all(len(set(ways)) == len(ways) for ways in always.values())
    off = quantized(winograd="off")
    assert off.quantizers.winograd == {} and off.table.transformed == {}


def test_a_way_is_quantised_when_it_is_taken(monkeypatch):
    asked = []

    def spy(*arguments):
        asked.append(arguments[1:3])
        return winograd_quantizer.quantize_transformed(*arguments)

    monkeypatch.setattr(winograd_choice, "quantize_transformed", spy)
    found = quantized()
    assert not asked
    way = found.quantizers.winograd["conv2"][-1]
    quantizer = way.quantize()
    assert asked == [(way.tile, way.wide)] == [(quantizer.tile, quantizer.wide)]


def test_a_saved_table_gives_the_same(tmp_path):
    default().table.save(tmp_path / "t.json")
    again = quantized(CalibrationTable.load(tmp_path / "t.json")).quantizers.winograd
    for name, ways in default().quantizers.winograd.items():
        for first, second in zip(ways, again[name], strict=True):
            assert (first.tile, first.wide, first.loss_db) == (second.tile, second.wide, second.loss_db)
            one, other = first.quantize(), second.quantize()
            np.testing.assert_array_equal(one.correction, other.correction)
            for role, constant in one.constants().items():
                np.testing.assert_array_equal(constant, other.constants()[role])


def test_without_statistics_everything_has_16_bits():
    old = CalibrationTable(dict(default().table))
    for found in (quantized(old), quantized(None)):
        assert shapes(found) == {name: [ALL_WIDE] for name in TILED}
        assert all(way.loss_db is None for (way,) in found.quantizers.winograd.values())
        quantizer = found.quantizers.winograd["conv2"][0].quantize()
        assert len(quantizer.weight) == 0 and len(quantizer.wide_weight) == 36


def test_weights_of_7_bits_have_no_narrow_products():
    assert shapes(quantized(weight_bits=7, winograd="always")) == {name: [ALL_WIDE] for name in TILED}


def test_layers_in_fp32_are_left_out():
    assert set(shapes(default().without(["/conv5"]))) == {"conv2", "conv10"}


OPTIONS = [{}, {"per_channel_activations": False}, {"per_channel_weights": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tiles_compute_what_exact_weights_would(options):
    found = quantized(winograd="always", **options)
    exact = NumpyNetwork(found.float_mod, [*TILED, *TILED.values()])(draw(model(), 1, seed=9)[0])
    for name, data in TILED.items():
        weight, reads = found.quantizers.weights[name], found.quantizers.activations[data]
        layer = tiled_layers(Dataflow(found.float_mod), found.quantizers)[name]
        zero_point = int(np.ravel(reads.zero_point)[0])
        integers = np.rint(exact[data] / layer.divisor.reshape(1, -1, 1, 1)) + zero_point
        step = layer.divisor[0] if reads.factor is None else reads.step
        unit = (layer.scale * step).reshape(1, -1, 1, 1)
        for way in found.quantizers.winograd[name]:
            chosen = way.quantize()
            geometry = 1, integers.shape[1], len(weight.exact), integers.shape[2:]
            spec = winograd_spec(*geometry, pad_value=zero_point, tile=way.tile, wide=way.wide)
            acc = winograd_conv2d.accumulate(
                spec, np.clip(integers, 0, 255).astype(np.uint8), Constants(**chosen.constants())
            )
            wanted_db = 35 if len(way.wide) == 36 else 14 if not way.wide else 20
            assert sqnr_db(exact[name], acc * unit) > wanted_db, str(way)
            # The bias says what is left over of the int8 weights' mean error, which these weights do not have.
            if len(way.wide) == 36:  # and these have none of their own
                of_direct = 0 * unit if weight.correction is None else weight.correction
                np.testing.assert_allclose(chosen.correction, -np.ravel(of_direct) / unit.ravel(), rtol=1e-6)


def test_a_zero_point_of_every_channel_is_not_for_tiles():
    flow, own = Dataflow(default().float_mod), default().quantizers
    reads = own.activations["relu1"]
    uneven = np.arange(16, dtype=np.int64)
    changed = {**own.activations, "relu1": dataclasses.replace(reads, zero_point=uneven)}
    assert list(tiled_layers(flow, Quantizers(changed, own.weights))) == ["conv5", "conv10"]

"""OrderWinograd: which orders it replaces, by what, and that they compute nearly the same."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from tests.numpy_calibration import quantize
from tests.passes.pass_testing import assert_unchanged
from tests.small_networks import Network
from tvm_int8 import pipeline, winograd
from tvm_int8.frontend import load_model
from tvm_int8.kernel_op import constants_of, is_kernel, spec_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.order_winograd import NOTES, OrderWinograd, by_layer
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.winograd_quantizer import WinogradWay, quantize_transformed
from tvm_int8.reference.network import run_network
from tvm_int8.specs import Conv2d, WinogradConv2d


def network():
    """Convolutions of 3x3 among others that cannot be tiled."""
    net = Network(x=(1, 8, 12, 13))
    x = net.relu(net.conv("x", 24))  # few channels
    x = net.relu(net.conv(x, 32))  # this one can be
    x = net.add("Add", net.conv(x, 32), x)  # and this one
    x = net.relu(net.conv(x, 32, kernel=1))
    x = net.relu(net.conv(x, 32, groups=2))
    x = net.relu(net.conv(x, 32, dilation=2))
    return net.finish(net.relu(net.conv(x, 32, stride=2)))


def specs(mod):
    """Of the convolutions."""
    found = [spec_of(binding.value) for binding in Dataflow(mod).bindings if is_kernel(binding.value)]
    return [spec for spec in found if isinstance(spec, Conv2d)]


def tiled(mod):
    return [spec for spec in specs(mod) if isinstance(spec, WinogradConv2d)]


def candidates(ordered, tile, wide=()):
    """Quantisers for every convolution of 3x3, with ranges that nothing leaves."""
    found = {}
    for binding in Dataflow(ordered).bindings:
        if is_kernel(binding.value) and getattr(spec := spec_of(binding.value), "kernel", None) == (3, 3):
            weight, ends = dict(constants_of(binding.value))["weight"], (-spec.pad_value, 255 - spec.pad_value)
            ranges = np.repeat(winograd.bounds(tile, *ends)[:, None].astype(float), weight.shape[1], 1)
            quantize = functools.partial(quantize_transformed, weight.astype(float), tile, wide, ranges, ends)
            found[spec.layer] = [WinogradWay(tile, wide, None, quantize)]
    return found


@pytest.fixture(scope="module")
def ordered():
    return pipeline.order()(quantize(network(), {"winograd": "off"}).mod)


def always(specs):
    return len(specs) - 1


def test_what_can_be_tiled_is(ordered):
    out = OrderWinograd(candidates(ordered, (4, 4)), always)(ordered)
    kinds = [type(spec).__name__ for spec in specs(out)]
    assert kinds == ["Conv2d", "WinogradConv2d", "WinogradConv2d", *["Conv2d"] * 4]
    before = specs(ordered)[2]
    after = specs(out)[2]
    assert (after.tile, after.wide, after.layer) == ((4, 4), (), before.layer)
    assert (after.inputs, after.result, after.output) == (before.inputs, before.result, before.output)
    assert [o.dtype for o in after.program.operands if o.kind == "acc"] == ["float32"]
    assert after.macs == before.macs
    assert dict(out.attrs[NOTES]) == {
        spec.layer: str(candidates(ordered, (4, 4))[spec.layer][0])
        for spec in specs(out)
        if type(spec) is WinogradConv2d
    }
    assert_unchanged(out, OrderWinograd(candidates(ordered, (4, 4)), always)(out))


@pytest.mark.parametrize("tile", [(2, 2), (4, 2), (4, 4)])
def test_sixteen_bits_compute_what_the_direct_convolution_does(ordered, tile, rng):
    wide = tuple(range(winograd.positions(tile)))
    out = OrderWinograd(candidates(ordered, tile, wide), always)(ordered)
    x = rng.standard_normal((1, 8, 12, 13)).astype(np.float32)
    (expected,), (found,) = run_network(ordered, x), run_network(out, x)
    assert sqnr_db(expected, found) > 36  # of white noise; smooth data lose less


def test_zero_points_and_borders(rng):
    """Data that can be negative: padding is real zero, and what the bias says of it is taken back."""
    net = Network(x=(1, 16, 9, 9))
    mod = pipeline.order()(quantize(net.finish(net.conv("x", 16)), {"winograd": "off"}).mod)
    (spec,) = specs(mod)
    assert spec.pad_value > 50
    out = OrderWinograd(candidates(mod, (4, 4), tuple(range(36))), always)(mod)
    x = rng.standard_normal((1, 16, 9, 9)).astype(np.float32)
    (expected,), (found,) = run_network(mod, x), run_network(out, x)
    assert sqnr_db(expected, found) > 44


def test_the_fastest_is_ordered(ordered):
    ways = candidates(ordered, (4, 4))
    small = candidates(ordered, (2, 2))
    both = {layer: [*ways[layer], *small[layer]] for layer in ways}
    asked = []

    def fastest(specs):
        asked.append([getattr(spec, "tile", None) for spec in specs])
        return 2 if len(asked) == 1 else 0

    out = OrderWinograd(both, fastest)(ordered)
    assert asked == [[None, (4, 4), (2, 2)]] * 2
    tiles = [getattr(spec, "tile", None) for spec in specs(out)]
    assert tiles == [None, (2, 2), *[None] * 5]
    notes = dict(out.attrs[NOTES])
    assert sorted(notes.values()) == [
        str(small[layer][0]) for layer in notes if notes[layer] != "direct: faster here"
    ] + ["direct: faster here"]


def test_layers_without_ways_are_direct(ordered):
    assert tiled(OrderWinograd({}, always)(ordered)) == []


def test_float_convolutions(rng):
    mod = pipeline.order()(pipeline.canonical_float()(load_model(network())))
    out = OrderWinograd({}, lambda specs: 1)(mod)
    assert [getattr(spec, "tile", None) for spec in specs(out)] == [None, (4, 4), (4, 4), *[None] * 4]
    x = rng.standard_normal((1, 8, 12, 13)).astype(np.float32)
    (expected,), (found,) = run_network(mod, x), run_network(out, x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_corrections_are_added_to_the_bias(ordered):
    ways = candidates(ordered, (2, 2))
    correction = np.arange(32.0)
    corrected = {
        layer: [replace(way, quantize=lambda way=way: replace(way.quantize(), correction=correction))]
        for layer, (way,) in ways.items()
    }
    biases = []
    for given in (ways, corrected):
        out = OrderWinograd(given, always)(ordered)
        calls = [b.value for b in Dataflow(out).bindings if is_kernel(b.value)]
        biases.append([dict(constants_of(c))["bias"] for c in calls if type(spec_of(c)) is WinogradConv2d])
    for plain, moved in zip(*biases, strict=True):
        np.testing.assert_allclose(moved - plain, np.arange(len(plain)), atol=1e-2)


def test_by_layer_leaves_out_names_that_stand_for_several():
    mod = pipeline.canonical_float()(load_model(network()))
    flow = Dataflow(mod)
    convolutions = [b.var.name for b in flow.bindings if "conv2d" in str(getattr(b.value, "op", ""))]
    found = by_layer(flow, dict.fromkeys(convolutions, ()))
    assert len(found) == len(convolutions)
    assert all(layer.startswith("/conv") for layer in found)
    same = mod["main"].with_attr("layer_names", dict.fromkeys(convolutions, "/conv"))
    assert by_layer(Dataflow(same), dict.fromkeys(convolutions, ())) == {}

"""`tvm_int8.allocate_bits`: goals are kept, the optimum is one, and compiled modules compute with the bits found."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import tvm_int8
from tests.small_networks import Network, draw
from tvm_int8 import BitAllocation, ConfigError, QuantizationConfig, api
from tvm_int8.allocation import Allocations, Request
from tvm_int8.quantization import quantize
from tvm_int8.quantization.bit_widths import BitWidths
from tvm_int8.quantization.sqnr import sqnr_db


@functools.cache
def network():
    net = Network(x=(1, 3, 10, 10))
    y = net.relu(net.conv("x", 8))
    y = net.relu(net.add("Add", net.conv(net.relu(net.conv(y, 8)), 8), y))
    y = net.relu(net.conv(y, 24, stride=2))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.finish(net.dense(y, 24, 5))


@functools.cache
def inputs():
    return draw(network(), 24, 0)


@functools.cache
def measured() -> Allocations:
    """The network, measured once for all tests."""
    config, plain = QuantizationConfig(bits=BitWidths()), api.Inputs(None, None, None, None)
    return Allocations(api.quantize_for_measuring(network(), inputs(), config, plain, False)[0], progress=False)


GOALS = ("target_sqnr_db", "max_size_bytes", "average_bits")


@functools.cache
def allocated(**options) -> BitAllocation:
    """What `allocate_bits` returns with these options."""
    (goal,) = (name for name in GOALS if name in options)
    others = {name: value for name, value in options.items() if name != goal}
    return measured().allocate(Request(goal, options[goal], **others))


@functools.cache
def compiled(allocation: BitAllocation | None):
    config = None if allocation is None else QuantizationConfig(bits=allocation)
    calibration = None if config is None else inputs()
    return tvm_int8.compile(network(), calibration=calibration, quantization=config, num_threads=1, progress=False)


def outputs(module) -> np.ndarray:
    return np.array([np.ravel(list(module.run(batch).values())).copy() for batch in inputs()])


def compiled_db(allocation: BitAllocation) -> float:
    return sqnr_db(outputs(compiled(None)), outputs(compiled(allocation)))


def test_the_public_function():
    found = tvm_int8.allocate_bits(network(), inputs(), average_bits=4.5, progress=False)
    same = allocated(average_bits=4.5)
    assert found.widths == same.widths
    assert (found.measured_sqnr_db, found.size_bytes) == (same.measured_sqnr_db, same.size_bytes)
    assert found.seconds > 0


METHODS = ("optimal", "closed_form", "greedy", "equal")


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_kept(method):
    found = allocated(average_bits=4.5, method=method)
    assert found.average_bits <= 4.5
    assert [row.name for row in found.weights] == ["/conv0", "/conv2", "/conv4", "/conv7", "/gemm11"]
    assert [row.count for row in found.weights] == [216, 576, 576, 1728, 120]
    assert found.method == method


def test_sizes_are_those_of_packed_weights():
    found = allocated(max_size_bytes=1500)
    assert found.size_bytes == sum(-(-row.count * row.bits // 8) for row in found.weights)
    assert 1300 < found.size_bytes <= 1500


@pytest.mark.parametrize("method", METHODS)
def test_a_target_is_reached(method):
    found = allocated(target_sqnr_db=24.0, method=method)
    assert found.measured_sqnr_db >= 24.0
    assert found.size_bytes <= allocated(target_sqnr_db=24.0, method="equal").size_bytes
    assert compiled_db(found) > 23.0


def test_the_optimum_is_never_worse_at_the_same_size():
    for average in (3, 4.5):
        best = allocated(average_bits=average)
        for method in METHODS[1:]:
            assert best.measured_sqnr_db >= allocated(average_bits=average, method=method).measured_sqnr_db


@pytest.mark.parametrize("average", [4, 5, 6, 7])
def test_predictions_hold(average):
    found = allocated(average_bits=average, method="equal")
    assert found.predicted_sqnr_db == pytest.approx(found.measured_sqnr_db, abs=2.0)


@pytest.mark.parametrize("average", [2.5, 4.5, 8])
def test_modules_deliver_what_was_measured(average):
    found = allocated(average_bits=average)
    assert compiled_db(found) == pytest.approx(found.measured_sqnr_db, abs=1)


def test_exhaustive_search_finds_little_more():
    options = {"average_bits": 4.0, "widths": (3, 4, 5)}
    yardstick = allocated(**options, method="exhaustive")
    assert yardstick.average_bits <= 4.0
    assert allocated(**options).measured_sqnr_db >= 0.98 * yardstick.measured_sqnr_db


def test_exhaustive_search_reaches_a_target_with_fewest_bits():
    options = {"target_sqnr_db": 20.0, "widths": (2, 3, 4)}
    yardstick = allocated(**options, method="exhaustive")
    assert yardstick.measured_sqnr_db >= 20.0
    assert yardstick.size_bytes <= allocated(**options).size_bytes <= 1.1 * yardstick.size_bytes


def test_more_than_eight_bits_can_do():
    most = allocated(average_bits=8).measured_sqnr_db
    found = allocated(target_sqnr_db=most + 2)
    floats = {row.name for row in found.weights if row.bits == 32}
    assert floats
    assert found.measured_sqnr_db >= most + 2
    reasons = {
        row.layer: row.reason for row in compiled(found).report if row.precision != "int8" and row.op == "conv2d"
    }
    assert set(reasons) >= floats - {"/gemm11"}
    assert all("32 bits" in reasons[layer] for layer in floats if layer in reasons)


def test_the_papers_weighting_counts_noise_of_weights_alone():
    found = allocated(average_bits=4.5, weighting="sqnr", method="closed_form")
    small, large = found.weights[4], found.weights[3]
    assert small.bits > large.bits


# Output channels


def test_channels_have_bits_of_their_own():
    for average in (3, 6):
        found, plain = (allocated(average_bits=average, per_channel=shares) for shares in (True, False))
        assert found.average_bits <= average
        assert found.measured_sqnr_db >= plain.measured_sqnr_db
        assert compiled_db(found) > found.measured_sqnr_db - 1
    mixed = [row for row in found.weights if row.channel_bits is not None]
    assert mixed
    for row in mixed:
        assert row.bits == pytest.approx(np.mean(row.channel_bits))
        per_channel = row.count // len(row.channel_bits)
        sizes = [-(-per_channel * row.channel_bits.count(bits) * bits // 8) for bits in set(row.channel_bits)]
        assert row.size_bytes == sum(sizes)


def test_channels_survive_files(tmp_path):
    found = allocated(average_bits=3, per_channel=True)
    found.save(tmp_path / "bits.json")
    assert BitAllocation.load(tmp_path / "bits.json") == found
    config = QuantizationConfig(bits=found)
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    average = next(f"{row.bits:.2f}" for row in found.weights if row.channel_bits is not None)
    assert average in str(found)


def test_mixed_weights_are_stored_at_their_widths(tmp_path):
    """And compute the same packed and unpacked."""
    module = compiled(allocated(average_bits=3, per_channel=True))
    sizes = []
    for packs in (True, False):
        module.export(tmp_path / "net.so", pack_weights=packs)
        loaded = tvm_int8.load(tmp_path / "net.so")
        np.testing.assert_array_equal(outputs(loaded), outputs(module))
        sizes.append([row.weight_bits for row in loaded.report if row.weight_bits is not None])
    assert any(bits != int(bits) for bits in sizes[0])
    assert not sizes[1]


def test_channels_are_rounded_as_in_a_layer_of_their_width(monkeypatch):
    """Measured weights are put together from those of equal bits, compiled ones rounded at once."""
    monkeypatch.setattr(quantize, "learn_weights_in_order", quantize.learn_weights)
    allocator = measured().allocator
    widths = {"/conv2": [2, 8, 3, 7, 4, 4, 6, 1]}
    config = QuantizationConfig(bits={**widths, "*": 8})
    quantized = tvm_int8.quantize(network(), inputs(), config, progress=False)
    (name,) = (name for name, layer in allocator.layers.items() if layer == "/conv2")
    mine, other = allocator.weights(name, tuple(widths["/conv2"])), quantized.quantizers.weights[name]
    few = [0, 2, 4, 5, 6, 7]
    assert (mine.channel_bits, mine.bits) == (other.channel_bits, other.bits) == (tuple(widths["/conv2"]), 1)
    np.testing.assert_array_equal(mine.values[few], other.values[few])
    np.testing.assert_allclose(mine.scale, other.scale, rtol=1e-6)
    reach = np.abs(mine.values).reshape(8, -1).max(1)
    assert (reach <= [4, 127, 8, 63, 16, 16, 64, 2]).all()


@pytest.mark.parametrize("bits", [[4, 4], [4] * 9])
def test_as_many_widths_as_channels(bits):
    config = QuantizationConfig(bits={"/conv2": bits})
    with pytest.raises(ConfigError, match=r"layer '/conv2': \d widths; expected 8"):
        tvm_int8.quantize(network(), inputs(), config, progress=False)


# Activations


def test_activations_of_fewer_bits():
    found = allocated(average_bits=5, activation_bits=5.5)
    assert found.average_activation_bits <= 5.5
    assert min(row.bits for row in found.activations) < 6
    assert compiled_db(found) > found.measured_sqnr_db - 3


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_no_activation_exceeds_its_integers(bits):
    config = QuantizationConfig(bits={"activations": {"*": bits}})
    module = tvm_int8.compile(network(), calibration=inputs(), quantization=config, num_threads=1, progress=False)
    stored = [array for array in module.capture(inputs()[0]) if array.dtype == np.uint8]
    assert stored
    assert 2 ** (bits - 1) < max(int(array.max()) for array in stored) <= 2**bits - 1
    assert len(module.report) == len(compiled(allocated(average_bits=8)).report)


def test_activations_along_with_weights():
    found = allocated(target_sqnr_db=20.0, activation_bits=None)
    assert found.measured_sqnr_db >= 20.0
    assert found.average_activation_bits < 8


# Saved, printed, refused


def test_it_can_be_saved(tmp_path):
    for found in (allocated(average_bits=5, activation_bits=5.5), allocated(average_bits=4.5)):
        found.save(tmp_path / "bits.json")
        assert BitAllocation.load(tmp_path / "bits.json") == found


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "tvm_int8 bit allocation", "version": 1}'])
def test_what_is_no_allocation(text, tmp_path):
    (tmp_path / "bits.json").write_text(text)
    with pytest.raises(ConfigError, match=r"bits\.json"):
        BitAllocation.load(tmp_path / "bits.json")
    with pytest.raises(ConfigError, match=r"other\.json"):
        BitAllocation.load(tmp_path / "other.json")


def test_it_prints_a_table():
    text = str(allocated(average_bits=5, activation_bits=5.5))
    assert "/conv7" in text
    assert "activations of" in text
    assert "bits on average" in text
    assert "activations of" not in str(allocated(average_bits=4.5))


def test_it_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    allocated(average_bits=5, activation_bits=5.5).plot(tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of target_sqnr_db"),
        ({"average_bits": 4, "max_size_bytes": 100}, "max_size_bytes and average_bits"),
        ({"average_bits": -1}, "above 0"),
        ({"average_bits": "4"}, "finite number"),
        ({"average_bits": 4, "method": "best"}, "'closed_form'"),
        ({"average_bits": 4, "weighting": "gradient"}, "'sensitivity'"),
        ({"average_bits": 4, "widths": (4, 9)}, "from 1 to 8"),
        ({"average_bits": 4, "widths": ()}, "from 1 to 8"),
        ({"average_bits": 4, "activation_bits": 0}, "from 1 to 8"),
        ({"max_size_bytes": 4000, "activation_bits": None}, "max_size_bytes"),
        ({"average_bits": 4, "quantization": QuantizationConfig(bits={"a": 4})}, "without bits"),
        ({"average_bits": 4, "quantization": None}, "without bits"),
        ({"average_bits": 4, "per_channel": 1}, "per_channel"),
        ({"average_bits": 4, "per_channel": True, "method": "equal"}, "method='equal'"),
        ({"average_bits": 4, "per_channel": True, "quantization": {"per_channel_weights": False}}, "one scale"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        tvm_int8.allocate_bits(network(), inputs(), progress=False, **options)


def test_goals_out_of_reach():
    with pytest.raises(ConfigError, match="at least 3"):
        allocated(average_bits=2, widths=(3, 4))
    with pytest.raises(ConfigError, match="at least 1206"):
        allocated(max_size_bytes=1000, widths=(3, 4))
    with pytest.raises(ConfigError, match="option 'activation_bits'"):
        allocated(average_bits=4, activation_bits=2, widths=(3, 4))


def test_a_network_without_layers():
    net = Network(x=(1, 3, 4, 4))
    model = net.finish(net.relu("x"))
    with pytest.raises(ConfigError, match="no layer in INT8"):
        tvm_int8.allocate_bits(model, draw(model, 2, 0), average_bits=4, progress=False)


def test_too_much_to_try():
    deep = Network(x=(1, 3, 4, 4))
    model = deep.finish(functools.reduce(lambda y, _: deep.relu(deep.conv(y, 4, 1)), range(6), "x"))
    with pytest.raises(ConfigError, match="combinations"):
        tvm_int8.allocate_bits(model, draw(model, 2, 0), average_bits=4, method="exhaustive", progress=False)


def test_a_table_is_not_enough():
    table = tvm_int8.calibrate(network(), inputs(), progress=False)
    with pytest.raises(tvm_int8.CalibrationError, match="pass the calibration data itself"):
        tvm_int8.allocate_bits(network(), table, average_bits=4, progress=False)


def test_bits_of_layers_that_there_are_not():
    with pytest.warns(UserWarning, match="bits entry 'nowhere'"):
        tvm_int8.quantize(network(), inputs(), QuantizationConfig(bits={"nowhere": 4}), progress=False)


def test_fewer_bits_from_a_table_alone():
    """Nothing to learn from, but the scales of least squares are better than those of 8 bits."""
    table = tvm_int8.calibrate(network(), inputs(), progress=False)
    config = QuantizationConfig(bits={"weights": {"*": 4}, "activations": {"*": 6}})
    module = tvm_int8.compile(network(), calibration=table, quantization=config, num_threads=1, progress=False)
    assert sqnr_db(outputs(compiled(None)), outputs(module)) > 12

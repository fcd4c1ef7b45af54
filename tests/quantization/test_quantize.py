"""tvm_int8.quantize with every option that improves accuracy, alone and together; NumPy computes the integers."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest

import tvm_int8
from tests.numpy_calibration import NumpyNetwork, imported, run_qdq
from tests.quantization.calibrated import flat, outputs
from tests.small_networks import NETWORKS, Network, draw
from tvm_int8.errors import CalibrationError
from tvm_int8.passes.dataflow import Dataflow, const_value
from tvm_int8.passes.expressions import op_name
from tvm_int8.quantization import ranges
from tvm_int8.quantization.quantize import needs_data
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantized_model import QuantizedModel

LEAST_DB = 30


@functools.cache
def model():
    """Batch norms, a depthwise convolution, a residual addition, a dense layer."""
    net = Network(x=(1, 3, 10, 10))
    y = net.relu(net.norm(net.conv("x", 12, stride=2)))
    z = net.relu(net.norm(net.conv(y, 12, groups=12)))
    y = net.relu(net.add("Add", net.norm(net.conv(z, 12, 1)), y))
    y = net.add("Flatten", net.add("GlobalAveragePool", net.relu(net.norm(net.conv(y, 20)))))
    return net.finish(net.dense(y, 20, 6))


MODELS = {"small": model, **NETWORKS}


@dataclass
class Result:
    """A quantised network and its outputs' SQNR, on inputs it has not seen and on those it has."""

    quantized: QuantizedModel
    db: float
    seen_db: float

    @property
    def mod(self):
        return self.quantized.mod

    def text(self):
        """All of the network, its constants included."""
        return self.mod.script(show_meta=True)


@functools.cache
def exact(network) -> dict[str, np.ndarray]:
    """The float outputs of one of the networks."""
    network = MODELS[network]()
    return {kind: outputs(imported(network), batches) for kind, batches in inputs_of(network).items()}


def inputs_of(network):
    return {"new": draw(network, 3, seed=1), "seen": draw(network, 8, seed=0)}


def made(config, name="small", calibration=None) -> Result:
    network = MODELS[name]()
    batches = inputs_of(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        data = batches["seen"] if calibration is None else calibration
        quantized = tvm_int8.quantize(network, data, config, progress=False)
    db = {kind: sqnr_db(exact(name)[kind], outputs(quantized.mod, every)) for kind, every in batches.items()}
    return Result(quantized, db["new"], db["seen"])


@functools.cache
def _quantized(options) -> Result:
    return made(dict(options))


def quantized(**options) -> Result:
    """Each choice of options once for all tests."""
    return _quantized(tuple(options.items()))


def weights(mod):
    """int8 weights by the convolution that reads them."""
    flow = Dataflow(mod)
    found = {}
    for binding in flow.bindings:
        if op_name(binding.value) in ("nn.conv2d", "nn.conv2d_transpose"):
            weight = flow.value(binding.value.args[1])
            if op_name(weight) == "dequantize":
                found[binding.var.name] = const_value(weight.args[0])
    return found


def count(mod, name):
    return sum(op_name(binding.value) == name for binding in Dataflow(mod).bindings)


# One option at a time

OPTIONS = [
    {"weight_bits": 7},
    {"weight_clipping": "mse"},
    {"equalization": True},
    {"bias_correction": "analytic"},
    {"bias_correction": "none"},
    {"rounding": "nearest"},
    {"rounding": "learned"},
    {"per_channel_activations": False},
    {"range_search": True},
    {"max_slowdown": 0.3},
    {"min_sqnr_db": 50.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_alone(options):
    found = quantized(**options)
    assert found.db > LEAST_DB
    assert found.text() != quantized().text()
    assert found.quantized.config.to_dict().items() >= options.items()


def test_seven_bits():
    for options in ({}, {"rounding": "learned"}, {"rounding": "nearest"}):
        values = weights(quantized(weight_bits=7, **options).mod)
        assert len(values) == 5
        assert max(np.abs(v.astype(int)).max() for v in values.values()) == 63


def test_learned_rounding_moves_weights_by_little():
    before, after = weights(quantized(rounding="nearest").mod), weights(quantized(rounding="learned").mod)
    moved = {name: np.abs(after[name].astype(int) - before[name]) for name in before}
    assert all(0 < distance.mean() < 1.5 for name, distance in moved.items())


def test_no_correction_leaves_biases_alone():
    """Each correction is an addition of its own in front of the bias."""
    additions = {kind: count(quantized(bias_correction=kind).mod, "add") for kind in ("none", "empirical")}
    assert additions["none"] == 6  # five biases and the residual
    assert additions["empirical"] == 11
    assert count(quantized(rounding="learned", bias_correction="none").mod, "add") == 6
    assert count(quantized(rounding="learned").mod, "add") == 11


def test_equalising_changes_the_float_network_that_is_calibrated():
    found, plain = quantized(equalization=True).quantized, quantized().quantized
    assert found.float_mod.script(show_meta=True) != plain.float_mod.script(show_meta=True)
    inputs = draw(model(), 1, seed=3)[0]
    before, after = (flat(run_qdq(q.float_mod, inputs)) for q in (plain, found))
    assert sqnr_db(before, after) > 100


def test_analytic_corrections_need_batch_norms_only():
    """They differ from what calibration sees, by little."""
    found, empirical = quantized(bias_correction="analytic"), quantized()
    assert found.text() != empirical.text()
    assert found.db > empirical.db - 6


# Layers in FP32


def test_the_sqnr_wanted_is_reached_on_the_calibration_data():
    found = quantized(min_sqnr_db=50.0)
    assert found.seen_db > 49.5
    floats = found.quantized.config.float_layers
    assert len(weights(found.mod)) == 5 - len(floats)


def test_more_accuracy_takes_more_layers():
    counts = [len(quantized(min_sqnr_db=db).quantized.config.float_layers) for db in (10.0, 50.0, 500.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]


def test_an_impossible_sqnr_leaves_everything_in_fp32():
    found = quantized(min_sqnr_db=500.0)
    assert weights(found.mod) == {}
    assert count(found.mod, "quantize") == 0
    assert found.db > 100


def test_layers_that_were_excluded_stay_excluded():
    first = quantized(min_sqnr_db=500.0).quantized.config.float_layers[0]
    found = quantized(min_sqnr_db=50.0, exclude=(first,))
    assert first not in found.quantized.config.float_layers
    assert found.quantized.config.exclude == (first,)
    assert found.seen_db > 49.5
    assert len(weights(found.mod)) == 4 - len(found.quantized.config.float_layers)


def test_the_report_says_why():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        module = tvm_int8.compile(quantized(max_slowdown=0.3).quantized)
    floats = quantized(max_slowdown=0.3).quantized.config.float_layers
    assert floats
    report = str(module.report)
    assert "left in FP32 for accuracy" in report
    assert all(layer in report for layer in floats)


# Together

TOGETHER = [
    {"equalization": True, "rounding": "learned", "weight_bits": 7},
    {"rounding": "learned", "bias_correction": "none", "weight_clipping": "mse"},
    {"rounding": "learned", "bias_correction": "analytic", "per_channel_weights": False},
    {"plain_convolutions": True, "per_channel_activations": False, "rounding": "learned"},
    {"range_search": True, "rounding": "learned", "max_slowdown": 0.2},
]


@pytest.mark.parametrize("options", TOGETHER, ids=str)
def test_options_together(options):
    assert quantized(**options).db > LEAST_DB - 3


def test_compiled_modules_compute_the_same_bits():
    found = quantized(range_search=True, rounding="learned", max_slowdown=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "LazyNetwork", NumpyNetwork)
        module = tvm_int8.compile(found.quantized)
    for inputs in draw(model(), 2, seed=4):
        for expected, actual in zip(run_qdq(found.mod, inputs), module(*inputs.values()), strict=True):
            if found.quantized.config.float_layers:
                assert sqnr_db(expected, actual) > 60
            else:
                np.testing.assert_array_equal(actual, expected)


def test_it_is_reproducible():
    options = {"range_search": True, "rounding": "learned", "max_slowdown": 0.2}
    assert made(options).text() == quantized(**options).text()


def test_learned_rounding_of_layers_behind_movers_of_data():
    """What these read is observed, too: flattened, padded, sliced tensors."""
    learned, sums = (made({"rounding": rounding}, "dense") for rounding in ("learned", "sums"))
    assert learned.seen_db > sums.seen_db - 1


def test_the_best_preset():
    found = made("best")
    assert found.db > LEAST_DB + 5
    assert found.seen_db > quantized().seen_db


# Tables


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rounding": "learned"}, "rounding='learned'"),
        ({"range_search": True}, "range_search"),
        ({"max_slowdown": 0.1}, "max_slowdown"),
        ({"min_sqnr_db": 30.0}, "min_sqnr_db"),
    ],
)
def test_a_table_is_refused_where_data_is_needed(options, named):
    with pytest.raises(CalibrationError, match=named):
        made(options, calibration=quantized().quantized.table)


def test_a_table_serves_what_looks_at_no_data():
    options = {"weight_bits": 7, "weight_clipping": "mse", "bias_correction": "analytic", "rounding": "nearest"}
    found = made(options, calibration=quantized().quantized.table)
    assert found.text() == quantized(**options).text()


def test_what_needs_data():
    config = tvm_int8.QuantizationConfig(rounding="learned", range_search=True, max_slowdown=0.1, min_sqnr_db=30.0)
    assert needs_data(config) == ["rounding='learned'", "range_search", "max_slowdown", "min_sqnr_db"]
    assert needs_data(tvm_int8.QuantizationConfig()) == []

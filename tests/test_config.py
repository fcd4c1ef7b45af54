import copy
import json
import pickle

import pytest

from tvm_int8.config import PRESETS, QuantizationConfig
from tvm_int8.errors import ConfigError


def test_defaults_are_valid():
    config = QuantizationConfig()
    assert (config.method, config.per_channel_weights, config.activation_dtype) == ("mse", True, "uint8")
    assert (config.exclude, config.methods, config.min_sqnr_db) == ((), (), None)
    assert (config.bias_correction, config.rounding, config.weight_clipping) == ("empirical", "sums", "none")
    assert (config.weight_bits, config.equalization, config.activation_symmetric) == (8, False, False)
    assert (config.winograd, config.winograd_max_loss_db) == ("auto", 10.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "median"}, ["'method'", "'median'", "'minmax'", "'percentile'"]),
        ({"method": 3}, ["'method'", "'minmax'"]),
        ({"percentile": 101}, ["'percentile'", "101", "at most 100"]),
        ({"percentile": 50}, ["above 50"]),
        ({"percentile": "99.9"}, ["'99.9'"]),
        ({"percentile": True}, ["True"]),
        ({"percentile": float("nan")}, ["nan"]),
        ({"exclude": [""]}, ["'exclude'"]),
        ({"exclude": [1]}, ["'exclude'"]),
        ({"exclude": None}, ["'exclude'"]),
        ({"exclude": {"head": True}}, ["'exclude'"]),
        ({"per_channel_weights": 1}, ["'per_channel_weights'", "True or False"]),
        ({"activation_dtype": "int4"}, ["'activation_dtype'", "'uint8'"]),
        ({"activation_symmetric": None}, ["'activation_symmetric'", "True or False"]),
        ({"equalization": "yes"}, ["'equalization'", "True or False"]),
        ({"weight_bits": 4}, ["'weight_bits'", "one of 8, 7"]),
        ({"weight_bits": 8.0}, ["'weight_bits'", "8.0"]),
        ({"weight_bits": True}, ["'weight_bits'", "True"]),
        ({"weight_clipping": "max"}, ["'weight_clipping'", "'none', 'mse'"]),
        ({"weight_clipping": None}, ["'weight_clipping'", "None"]),
        ({"rounding": "up"}, ["'rounding'", "'nearest', 'sums', 'learned'"]),
        ({"bias_correction": "data"}, ["'bias_correction'", "'none', 'analytic', 'empirical'"]),
        ({"bias_correction": 1}, ["'bias_correction'", "1"]),
        ({"min_sqnr_db": "30"}, ["'min_sqnr_db'", "'30'", "decibels"]),
        ({"min_sqnr_db": float("inf")}, ["'min_sqnr_db'", "inf"]),
        ({"min_sqnr_db": False}, ["'min_sqnr_db'", "False"]),
        ({"winograd": "yes"}, ["'winograd'", "'auto', 'off', 'always'"]),
        ({"winograd": True}, ["'winograd'", "True"]),
        ({"winograd_max_loss_db": "1"}, ["'winograd_max_loss_db'", "decibels"]),
        ({"winograd_max_loss_db": float("inf")}, ["'winograd_max_loss_db'", "inf"]),
        ({"methods": {"conv1": "median"}}, ["\"methods['conv1']\"", "'median'", "'minmax'"]),
        ({"methods": {"": "minmax"}}, ["'methods'", "pattern -> method"]),
        ({"methods": {1: "minmax"}}, ["'methods'"]),
        ({"methods": "minmax"}, ["'methods'"]),
        ({"methods": ("conv1", "minmax")}, ["'methods'"]),
        ({"methods": (("a", "minmax"), ("a", "mse"))}, ["'methods'", "every pattern once"]),
        ({"metod": "minmax"}, ["unknown option 'metod'", "percentile", "did you mean 'method"]),
        ({"colour": "red"}, ["unknown option 'colour'", "per_channel_weights", "remove it"]),
    ],
)
@pytest.mark.parametrize("make", [QuantizationConfig.from_dict, lambda options: QuantizationConfig(**options)])
def test_invalid_options_are_refused(make, options, words):
    with pytest.raises(ConfigError) as caught:
        make(options)
    for word in words:
        assert word in str(caught.value)


def test_options_must_be_a_dict():
    with pytest.raises(ConfigError, match="dict of option name"):
        QuantizationConfig.from_dict(["minmax"])


def test_json_round_trip():
    config = QuantizationConfig(
        method="percentile",
        methods={"/head/*": "entropy", "*": "minmax"},
        percentile=99.9,
        exclude=["/head/*", "softmax"],
        activation_symmetric=True,
        weight_bits=7,
        weight_clipping="mse",
        rounding="learned",
        equalization=True,
        bias_correction="analytic",
        min_sqnr_db=30,
    )
    assert QuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict()["methods"] == {"/head/*": "entropy", "*": "minmax"}


def test_bias_correction_is_named_or_switched():
    for switch, name in ((True, "empirical"), (False, "none")):
        assert QuantizationConfig(bias_correction=switch) == QuantizationConfig(bias_correction=name)
        assert QuantizationConfig(bias_correction=switch).to_dict()["bias_correction"] == name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    config = QuantizationConfig.preset(name)
    assert {option: config.to_dict()[option] for option in PRESETS[name]} == PRESETS[name]
    assert QuantizationConfig.from_dict(config.to_dict()) == config


def test_presets_differ_and_can_be_changed():
    assert QuantizationConfig.preset("default") == QuantizationConfig()
    assert len({QuantizationConfig.preset(name) for name in PRESETS}) == len(PRESETS)
    changed = QuantizationConfig.preset("fast", method="entropy", exclude="conv1")
    assert (changed.method, changed.exclude, changed.rounding) == ("entropy", ("conv1",), "nearest")


@pytest.mark.parametrize("name", ["fastest", "", None, 1])
def test_an_unknown_preset(name):
    with pytest.raises(ConfigError, match=f"preset.*{name!r}.*'fast', 'default', 'best'"):
        QuantizationConfig.preset(name)


def test_an_unknown_option_of_a_preset():
    with pytest.raises(ConfigError, match="did you mean 'method"):
        QuantizationConfig.preset("fast", metod="minmax")


def test_partial_dict_takes_defaults():
    assert QuantizationConfig.from_dict({"percentile": 99}) == QuantizationConfig(percentile=99)


def test_copies_and_hashes_like_a_value():
    config = QuantizationConfig(exclude=("a",), methods={"b": "minmax"})
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert len({config, copy.copy(config)}) == 1


def test_is_frozen():
    with pytest.raises(AttributeError):
        QuantizationConfig().method = "percentile"


@pytest.mark.parametrize(
    ("pattern", "layer", "kind", "excluded"),
    [
        ("conv1", "conv1", "nn.conv2d", True),
        ("conv1", "conv10", "nn.conv2d", False),
        ("/head/*", "/head/cls/conv", "nn.conv2d", True),
        ("/head/*", "/neck/head/conv", "nn.conv2d", False),
        ("conv2d", "anything", "relax.nn.conv2d", True),
        ("nn.conv2d", "anything", "relax.nn.conv2d", True),
        ("relax.nn.conv2d", "anything", "nn.conv2d", True),
        ("conv2d", "anything", "nn.conv2d_transpose", False),
        ("block[0].conv", "block[0].conv", "nn.conv2d", True),
        ("block[0].conv", "block0.conv", "nn.conv2d", True),
        ("Conv1", "conv1", "nn.conv2d", False),
    ],
)
def test_exclude(pattern, layer, kind, excluded):
    assert QuantizationConfig(exclude=[pattern]).excludes(layer, kind) is excluded


def test_a_lone_string_is_one_pattern():
    assert QuantizationConfig(exclude="conv1").exclude == ("conv1",)


def test_unmatched_exclusions_are_reported():
    config = QuantizationConfig(exclude=["conv1", "hed/*", "softmax"])
    layers = [("conv1", "nn.conv2d"), ("head/out", "nn.softmax")]
    assert config.unmatched_exclusions(iter(layers)) == ("hed/*",)


@pytest.mark.parametrize(
    ("tensor", "layer", "method"),
    [
        ("conv1", "/stem/conv", "minmax"),
        ("conv10", "/stem/conv", "mse"),
        ("conv3", "/head/conv", "entropy"),
        ("conv1", "/head/conv", "minmax"),
        ("head_input", "", "percentile"),
        ("x", "", "mse"),
        ("y", "block[0].conv", "gaussian"),
    ],
)
def test_the_first_pattern_that_matches_names_the_method(tensor, layer, method):
    methods = {
        "conv1": "minmax",
        "/head/*": "entropy",
        "*input": "percentile",
        "block[0].conv": "gaussian",
        "/head/conv": "auto",
    }
    config = QuantizationConfig(methods=methods)
    assert config.method_of(tensor, layer) == method
    assert QuantizationConfig(methods=tuple(methods.items())) == config


def test_unmatched_methods_are_reported():
    config = QuantizationConfig(methods={"conv1": "minmax", "hed/*": "mse", "head/?": "mse", "*": "minmax"})
    assert config.unmatched_methods(iter([("t1", "conv1"), ("t2", "head/a"), ("x", "")])) == ("hed/*",)
    assert QuantizationConfig(methods={"*": "mse"}).unmatched_methods([]) == ("*",)

import copy
import json
import pickle

import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError


def test_defaults_are_valid():
    config = QuantizationConfig()
    assert (config.method, config.per_channel_weights, config.activation_dtype) == ("mse", True, "uint8")
    assert config.exclude == ()


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
        ({"metod": "minmax"}, ["unknown option 'metod'", "percentile", "did you mean 'method'"]),
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
    config = QuantizationConfig(method="percentile", percentile=99.9, exclude=["/head/*", "softmax"])
    assert QuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_partial_dict_takes_defaults():
    assert QuantizationConfig.from_dict({"percentile": 99}) == QuantizationConfig(percentile=99)


def test_copies_and_hashes_like_a_value():
    config = QuantizationConfig(exclude=("a",))
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

"""What `QuantizationConfig(bits=...)` holds."""

import pytest

from tvm_int8.config import QuantizationConfig
from tvm_int8.errors import ConfigError
from tvm_int8.quantization.bit_widths import BitWidths


def test_layers_patterns_and_all_others():
    widths = BitWidths.of({"stem": 6, "/body/*": 3, "conv[0]": 2})
    assert [widths.weight(name) for name in ("stem", "/body/conv1", "conv[0]", "conv0", "head")] == [6, 3, 2, 2, 8]
    assert widths.activation("relu1", "stem") == 8


def test_the_first_match_counts():
    assert BitWidths.of({"a": 5, "*": 4}).weight("a") == 5
    assert BitWidths.of({"*": 4, "a": 5}).weight("a") == 4


def test_activations_by_tensor_or_layer():
    widths = BitWidths.of({"activations": {"relu1": 4, "head": 6}})
    assert (widths.activation("relu1", "stem"), widths.activation("x", "head"), widths.activation("x")) == (4, 6, 8)
    assert widths.weight("stem") == 8


def test_output_channels():
    config = QuantizationConfig(bits={"a": [4, 2, 8], "*": 5})
    assert config.bits.weight("a") == (4, 2, 8)
    assert config.bits.weight("b") == 5
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(QuantizationConfig.from_dict(config.to_dict()))


def test_it_survives_a_dict():
    config = QuantizationConfig(bits={"weights": {"a": 3}, "activations": {"b": 5}})
    assert config.bits == BitWidths((("a", 3),), (("b", 5),))
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert QuantizationConfig.from_dict(QuantizationConfig().to_dict()).bits is None
    assert hash(config) == hash(QuantizationConfig.from_dict(config.to_dict()))


def test_names_that_match_nothing():
    widths = BitWidths.of({"weights": {"a": 3, "z*": 2}, "activations": {"b": 5}})
    assert widths.unmatched(["a"], [("t", "a")]) == ("z*", "b")


NO_WIDTHS = [4, "best", {"a": 0}, {"a": 33}, {"a": 4.0}, {"a": True}, {1: 4}, {"": 4}, [("a", 4)]]
NO_WIDTHS += [{"a": []}, {"a": [4, 9]}]


@pytest.mark.parametrize("given", NO_WIDTHS)
def test_what_is_no_bit_width(given):
    with pytest.raises(ConfigError, match="option 'bits'"):
        QuantizationConfig(bits=given)


@pytest.mark.parametrize("bits", [9, 32])
def test_activations_have_at_most_eight(bits):
    with pytest.raises(ConfigError, match="from 1 to 8"):
        QuantizationConfig(bits={"activations": {"a": bits}})

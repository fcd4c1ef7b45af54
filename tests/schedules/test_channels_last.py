"""Plain NHWC, to the last bit."""

import pytest

from tests.schedules.kernel_testing import CASCADELAKE, NATIVE, assert_exact
from tvm_int8.schedules.channels_last import ChannelsLastRule
from tvm_int8.specs import ChannelsLast, Output, Program, Tensor

RULE = ChannelsLastRule()


@pytest.mark.parametrize("channels", [1, 12, 16, 21, 64, 126])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 41)])
@pytest.mark.parametrize("cpu", [NATIVE, CASCADELAKE], ids=lambda cpu: cpu.name)
def test_channels_and_sizes(channels, size, cpu):
    data, result = Tensor((2, channels, *size), "float32"), Tensor((2, *size, channels), "float32", 0)
    assert_exact(RULE, ChannelsLast("layer", (data,), result, Program(()), Output("float32")), cpu=cpu)

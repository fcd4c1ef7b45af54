"""RecognizeChannelShuffle: reshape, transpose, reshape become one take."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import assert_same_numbers, call_named, module, ops, transformed
from tvm_int8.passes.expressions import const_value
from tvm_int8.passes.recognize_channel_shuffle import RecognizeChannelShuffle

op = relax.op
SHAPE = (2, 12, 3, 5)


def shuffle(split, axes, back=SHAPE):
    def body(emit, x):
        y = emit(op.permute_dims(emit(op.reshape(x, split)), axes))
        return emit(op.nn.relu(emit(op.reshape(y, back), "shuffled")))

    return module(body, {"shuffled": "/stage2/shuffle"}, x=SHAPE)


@pytest.mark.parametrize(
    ("split", "axes"),
    [
        ((2, 3, 4, 3, 5), (0, 2, 1, 3, 4)),
        ((2, 4, 3, 3, 5), (0, 2, 1, 3, 4)),
        ((2, 3, 4, 15), (0, 2, 1, 3)),
        ((2, 2, 3, 2, 3, 5), (0, 3, 1, 2, 4, 5)),
    ],
)
def test_shuffles(split, axes):
    before = shuffle(split, axes)
    after = transformed(RecognizeChannelShuffle(), before)
    assert ops(after)[:2] == ["take", "nn.relu"]
    channels = np.arange(12).reshape(split[1 : len(split) - (1 if split[-1] == 15 else 2)])
    expected = channels.transpose([axis - 1 for axis in axes[1 : 1 + channels.ndim]]).ravel()
    np.testing.assert_array_equal(const_value(call_named(after, "take").args[1]), expected)
    assert dict(after["main"].attrs["layer_names"])["shuffled"] == "/stage2/shuffle"
    assert_same_numbers(before, after, tolerance=0)


@pytest.mark.parametrize(
    ("split", "axes", "back"),
    [
        ((2, 3, 4, 3, 5), (0, 2, 1, 4, 3), SHAPE),
        ((2, 3, 4, 3, 5), (2, 0, 1, 3, 4), SHAPE),
        ((2, 3, 4, 3, 5), (0, 2, 1, 3, 4), (2, 4, 9, 5)),
        ((3, 2, 4, 3, 5), (0, 2, 1, 3, 4), SHAPE),
        ((2, 12, 5, 3), (0, 1, 3, 2), SHAPE),
    ],
    ids=["pixels turned", "batch turned", "another shape", "batch split", "a transposed map"],
)
def test_other_permutations_stay(split, axes, back):
    before = shuffle(split, axes, back)
    assert "take" not in ops(transformed(RecognizeChannelShuffle(), before))


@pytest.mark.parametrize("read", [0, 1])
def test_what_others_read_stays(read):
    def body(emit, x):
        first = emit(op.reshape(x, (2, 3, 4, 3, 5)))
        second = emit(op.permute_dims(first, (0, 2, 1, 3, 4)))
        return [(first, second)[read], emit(op.reshape(second, SHAPE))]

    assert "take" not in ops(transformed(RecognizeChannelShuffle(), module(body, x=SHAPE)))

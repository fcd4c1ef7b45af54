"""MergeGathers: channels are moved once, where that is cheaper, and come out as before to the last bit."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import module, transformed
from tests.passes.qdq_testing import int8_weight, ordered, orders, qdq, random_inputs
from tvm_int8.passes.expressions import constant
from tvm_int8.passes.merge_gathers import MOST_INPUTS, MergeGathers
from tvm_int8.reference.network import run_network
from tvm_int8.specs import ChannelGather

op = relax.op


def conv(emit, x, out, **scale):
    weight = int8_weight(emit, out, x.ty.shape[1].value, 1, 1, seed=out)
    return qdq(emit, emit(op.nn.conv2d(x, weight), "conv"), **scale)


def concat(emit, *parts, **scale):
    return qdq(emit, emit(op.concat(list(parts), axis=1)), **scale)


def shuffle(emit, x, **scale):
    channels = x.ty.shape[1].value
    order = np.arange(channels).reshape(2, -1).T.ravel()
    return qdq(emit, emit(op.take(x, constant(order), axis=1)), **scale)


def part(emit, x, begin, end, **scale):
    return qdq(emit, emit(op.strided_slice(x, [1], [begin], [end])), **scale)


def pad(emit, x, channels, **scale):
    return qdq(emit, emit(op.nn.pad(x, [0, 0, 0, channels, 0, 0, 0, 0])), **scale)


def merged(body, batch: int = 1) -> list[ChannelGather]:
    """The gathers left of a network, which computes what it did."""

    def network(emit, x):
        x = qdq(emit, x)
        results = body(emit, conv(emit, x, 20), conv(emit, x, 12, scale=0.04))
        results = results if isinstance(results, list) else [results]
        return [emit(op.nn.conv2d(y, int8_weight(emit, 4, y.ty.shape[1].value, 1, 1))) for y in results]

    before = ordered(module(network, x=(batch, 7, 3, 5)))
    after = transformed(MergeGathers(), before)
    inputs = random_inputs(before)
    for expected, found in zip(run_network(before, *inputs), run_network(after, *inputs), strict=True):
        np.testing.assert_array_equal(found, expected)
    return [spec for spec in orders(after) if isinstance(spec, ChannelGather)]


@pytest.mark.parametrize("scales", [(0.05, 0.05), (0.05, 0.06), (0.07, 0.07)])
def test_a_shuffled_concatenation_is_one_gather(scales):
    """Where both rescale, rounding twice is what was ordered."""
    gathers = merged(lambda emit, a, b: shuffle(emit, concat(emit, a, b, scale=scales[0]), scale=scales[1]))
    assert len(gathers) == 1 + (scales[0] != scales[1])
    if len(gathers) == 1:
        assert gathers[0].source[:3] == ((0, 0), (0, 16), (0, 1))
        assert [tensor.shape[1] for tensor in gathers[0].inputs] == [20, 12]


def test_the_halves_of_a_shuffle_are_gathered_without_the_whole():
    def body(emit, a, b):
        x = shuffle(emit, concat(emit, a, b))
        return [part(emit, x, 0, 11), part(emit, x, 11, 32)]

    assert [len(spec.source) for spec in merged(body)] == [11, 21]


def test_slices_of_whole_blocks_read_the_whole():
    """They cost nothing, two gathers cost a call more."""

    def body(emit, a, b):
        x = shuffle(emit, concat(emit, a, b))
        return [part(emit, x, 0, 16), part(emit, x, 16, 32)]

    assert sorted(len(spec.source) for spec in merged(body)) == [16, 16, 32]


def test_what_others_read_too_stays():
    def body(emit, a, b):
        x = concat(emit, a, b)
        return [shuffle(emit, x), x]

    assert [len(spec.source) for spec in merged(body)] == [32, 32]


def test_zeros_go_through():
    (spec,) = merged(lambda emit, a, b: shuffle(emit, pad(emit, a, 6)))
    assert spec.source.count((-1, 0)) == 6


def test_a_gather_reads_few_tensors():
    def body(emit, a, b):
        parts = [conv(emit, a, 5) for _ in range(MOST_INPUTS)]
        return concat(emit, shuffle(emit, concat(emit, a, b)), *parts)

    assert max(len(spec.inputs) for spec in merged(body)) == MOST_INPUTS + 1
    assert len(merged(body)) == 2


def test_images_of_a_batch():
    assert len(merged(lambda emit, a, b: shuffle(emit, concat(emit, a, b)), batch=3)) == 1

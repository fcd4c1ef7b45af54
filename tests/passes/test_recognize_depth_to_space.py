"""RecognizeDepthToSpace: reshape, transpose, reshape become one kernel order."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import f32, module, ops, run
from tests.passes.qdq_testing import dequantize, orders, quantize
from tvm_int8.kernel_op import NAME
from tvm_int8.passes.recognize_depth_to_space import RecognizeDepthToSpace
from tvm_int8.reference import evaluate
from tvm_int8.specs import DepthToSpace

op = relax.op
ADJACENT, APART = (0, 1, 4, 2, 5, 3), (0, 3, 4, 1, 5, 2)


def moved(emit, x, split, axes, to):
    y = emit(op.permute_dims(emit(op.reshape(x, split)), axes), "moved")
    return emit(op.reshape(y, to), "shuffled")


@pytest.mark.parametrize(
    ("channels", "split", "axes", "to"),
    [
        (12, (2, 3, 2, 2, 4, 5), ADJACENT, (2, 3, 8, 10)),
        (9, (2, 1, 3, 3, 4, 5), ADJACENT, (2, 1, 12, 15)),
        (64, (2, 2, 2, 16, 4, 5), APART, (2, 16, 8, 10)),
    ],
)
def test_pixels_of_channels_are_one_order(channels, split, axes, to):
    def body(emit, x):
        return emit(op.nn.relu(moved(emit, x, split, axes, to)))

    before = module(body, {"moved": "/up/DepthToSpace"}, x=(2, channels, 4, 5))
    after = RecognizeDepthToSpace()(before)
    assert ops(after) == [NAME, "nn.relu"]
    (spec,) = orders(after)
    assert isinstance(spec, DepthToSpace) and spec.layer == "/up/DepthToSpace"
    x = f32(2, channels, 4, 5)
    np.testing.assert_array_equal(np.maximum(evaluate(spec, [x], None), 0), run(before, x)[0])


def test_integers_are_moved_and_described():
    def body(emit, x):
        q = moved(emit, quantize(emit, x, 0.1, 3), (1, 1, 2, 2, 4, 4), ADJACENT, (1, 1, 8, 8))
        return dequantize(emit, q, 0.1, 3)

    after = RecognizeDepthToSpace()(module(body, x=(1, 4, 4, 4)))
    assert ops(after) == ["quantize", NAME, "dequantize"]
    (call,) = [b.value for block in after["main"].body.blocks for b in block.bindings if b.value.op.name == NAME]
    assert list(call.attrs["stored"]) == pytest.approx([0.1, 3])
    assert orders(after)[0].result.dtype == "uint8"


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, x: moved(emit, x, (1, 2, 2, 3, 4, 4), APART, (1, 3, 8, 8)),  # channels that straddle blocks
        lambda emit, x: moved(emit, x, (1, 3, 2, 2, 4, 4), (0, 1, 4, 3, 5, 2), (1, 3, 8, 8)),  # columns first
        lambda emit, x: moved(emit, x, (1, 6, 2, 1, 4, 4), ADJACENT, (1, 6, 8, 4)),  # rows only
    ],
)
def test_others_stay(body):
    after = RecognizeDepthToSpace()(module(body, x=(1, 12, 4, 4)))
    assert ops(after)[:3] == ["reshape", "permute_dims", "reshape"]


def test_what_others_read_stays():
    def body(emit, x):
        y = emit(op.permute_dims(emit(op.reshape(x, (1, 3, 2, 2, 4, 4))), ADJACENT))
        return [emit(op.reshape(y, (1, 3, 8, 8))), emit(op.exp(y))]

    assert NAME not in ops(RecognizeDepthToSpace()(module(body, x=(1, 12, 4, 4))))

"""OrderChannelsLast: transposes to NHWC behind kernels."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, f32, module, ops, run
from tests.passes.qdq_testing import ordered, orders
from tvm_int8.passes.assign_layouts import AssignLayouts
from tvm_int8.passes.order_channels_last import OrderChannelsLast
from tvm_int8.reference.network import run_network
from tvm_int8.specs import ChannelsLast

op = relax.op


def conv(emit, x):
    return emit(op.nn.conv2d(x, const(21, 4, 1, 1)), "conv")


def head(emit, x, axes=(0, 2, 3, 1)):
    return emit(op.exp(emit(op.reshape(emit(op.permute_dims(conv(emit, x), axes), "last"), (2, -1)))))


def test_a_transpose_behind_a_kernel_is_a_kernel():
    before = module(head, {"last": "head/Transpose"}, x=(2, 4, 5, 6))
    after = OrderChannelsLast()(ordered(before))
    (spec,) = [spec for spec in orders(after) if isinstance(spec, ChannelsLast)]
    assert spec.layer == "head/Transpose"
    assert "permute_dims" not in ops(after)
    x = f32(2, 4, 5, 6)
    np.testing.assert_allclose(run_network(after, x)[0], run(before, x)[0], rtol=1e-5, atol=1e-5)


def test_it_reads_packed_and_writes_plain():
    placed = AssignLayouts()(OrderChannelsLast()(ordered(module(head, x=(2, 4, 5, 6)))))
    (spec,) = [spec for spec in orders(placed) if isinstance(spec, ChannelsLast)]
    assert (spec.inputs[0].block, spec.result.block) == (16, 0)


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, x: head(emit, x, (0, 3, 1, 2)),
        lambda emit, x: emit(op.exp(emit(op.permute_dims(x, (0, 2, 3, 1))))),  # of the network's input
    ],
)
def test_others_stay(body):
    after = OrderChannelsLast()(ordered(module(body, x=(2, 4, 5, 6))))
    assert "permute_dims" in ops(after)

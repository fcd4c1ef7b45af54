"""Which operators become one kernel, and where a group must end."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, constant, f32, module
from tests.passes.qdq_testing import quantize, scalar
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name
from tvm_int8.passes.groups import MAX_STEPS, fusion_groups, is_anchor, is_view, logical_shape, slice_ranges

op = relax.op
SHAPE = (2, 8, 6, 6)


def conv(emit, x, channels=8):
    return emit(op.nn.conv2d(x, const(channels, x.ty.shape[1].value, 3, 3), padding=1))


def groups_of(body, **inputs):
    return fusion_groups(Dataflow(module(body, **(inputs or {"x": SHAPE}))))


def members(group):
    return [op_name(binding.value) for binding in group.bindings]


def test_a_residual_block_is_one_group_each_for_its_convolutions():
    def body(emit, x):
        y = emit(op.nn.relu(emit(op.add(conv(emit, x), const(1, 8, 1, 1)))))
        y = emit(op.add(conv(emit, y), const(1, 8, 1, 1)))
        return quantize(emit, emit(op.nn.relu(emit(op.add(y, x)))))

    first, second = groups_of(body)
    assert members(first) == ["nn.conv2d", "add", "nn.relu"]
    assert members(second) == ["nn.conv2d", "add", "add", "nn.relu"]
    assert first.quantize is None
    assert op_name(second.quantize.value) == "quantize"
    assert second.result == second.quantize.var
    assert [expr.name for expr in second.external_inputs() if isinstance(expr, relax.Var)] == [first.exit.name, "x"]


def test_both_branches_of_a_residual_end_in_one_group():
    def body(emit, x):
        left, right = conv(emit, x), conv(emit, x)
        return emit(op.nn.relu(emit(op.add(left, right))))

    assert sorted(map(members, groups_of(body))) == [["nn.conv2d"], ["nn.conv2d", "add", "nn.relu"]]


def test_plain_convolutions_take_in_a_bias_and_one_clamp():
    def body(emit, x):
        y = emit(op.nn.relu(emit(op.add(conv(emit, x), const(1, 8, 1, 1)))))
        y = emit(op.add(conv(emit, emit(op.clip(y, 0.0, 6.0))), const(1, 8, 1, 1)))
        z = emit(op.nn.leakyrelu(conv(emit, x), 0.1))
        return emit(op.nn.relu(emit(op.add(y, z))))

    found = fusion_groups(Dataflow(module(body, x=SHAPE)), plain_convolutions=True)
    assert sorted(map(members, found)) == [
        ["clip"],
        ["nn.conv2d"],
        ["nn.conv2d", "add"],
        ["nn.conv2d", "add", "nn.relu"],
        ["nn.leakyrelu", "add", "nn.relu"],
    ]


def test_a_region_may_fork_and_join():
    def silu(emit, x):
        y = conv(emit, x)
        return emit(op.multiply(y, emit(op.sigmoid(y))))

    (group,) = groups_of(silu)
    assert members(group) == ["nn.conv2d", "sigmoid", "multiply"]


def test_a_fork_that_does_not_join_ends_the_group():
    def body(emit, x):
        y = conv(emit, x)
        return [emit(op.nn.relu(y)), emit(op.sigmoid(y))]

    assert [members(group) for group in groups_of(body)] == [["nn.conv2d"], ["nn.relu"], ["sigmoid"]]


def test_a_join_after_a_convolution_ends_the_group():
    def body(emit, x):
        y = conv(emit, x)
        return emit(op.add(emit(op.nn.relu(y)), conv(emit, y)))

    groups = groups_of(body)
    assert members(groups[0]) == ["nn.conv2d"]
    assert sorted(members(group)[0] for group in groups) == ["nn.conv2d", "nn.conv2d", "nn.relu"]


def test_a_model_output_is_not_swallowed():
    def body(emit, x):
        y = emit(op.add(conv(emit, x), const(1, 8, 1, 1)))
        return [y, emit(op.nn.relu(y))]

    assert [members(group) for group in groups_of(body)] == [["nn.conv2d", "add"], ["nn.relu"]]


def test_a_quantize_belongs_to_the_group_only_when_nobody_else_reads_its_data():
    def body(emit, x):
        y = conv(emit, x)
        return [quantize(emit, y), emit(op.nn.softmax(y))]

    (group,) = groups_of(body)
    assert group.quantize is None


def test_only_bytes_are_stored():
    def body(emit, x):
        return emit(op.quantize(conv(emit, x), scalar(0.1, "float32"), scalar(0, "int16"), axis=1, out_dtype="int16"))

    (group,) = groups_of(body)
    assert group.quantize is None


@pytest.mark.parametrize("computes", [True, False])
def test_what_computes_stores_channels_in_scales_of_their_own(computes):
    def body(emit, x):
        y = conv(emit, x) if computes else emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]))
        arguments = constant(f32(8, low=0.1)), constant(np.zeros(8, "uint8"))
        return emit(op.quantize(y, *arguments, axis=1, out_dtype="uint8"))

    (group,) = groups_of(body)
    assert (group.quantize is not None) == computes


def test_movers_take_in_a_quantize_and_nothing_else():
    def body(emit, x):
        y = emit(op.concat([x, x], axis=1))
        return quantize(emit, emit(op.nn.relu(y)))

    assert [members(group) for group in groups_of(body)] == [["concat"], ["nn.relu"]]


def test_a_growing_shape_ends_a_group():
    """The squeeze of a squeeze-and-excitation block must not take in the multiply of the whole map."""

    def body(emit, x):
        squeezed = emit(op.sigmoid(emit(op.nn.adaptive_avg_pool2d(x, (1, 1)))))
        return emit(op.multiply(x, squeezed))

    assert [members(group) for group in groups_of(body)] == [["nn.adaptive_avg_pool2d", "sigmoid"], ["multiply"]]


def test_views_do_not_end_a_group():
    def body(emit, x):
        y = emit(op.reshape(emit(op.nn.adaptive_avg_pool2d(x, (1, 1))), (2, 8)))
        return emit(op.nn.relu(y))

    assert [members(group) for group in groups_of(body)] == [["nn.adaptive_avg_pool2d", "reshape", "nn.relu"]]


def test_long_chains_are_cut():
    def body(emit, x):
        for _ in range(2 * MAX_STEPS):
            x = emit(op.nn.relu(x))
        return x

    sizes = [len(group.bindings) for group in groups_of(body)]
    assert sum(sizes) == 2 * MAX_STEPS
    assert max(sizes) <= MAX_STEPS


def test_no_binding_is_in_two_groups():
    def body(emit, x):
        a, b = conv(emit, x), conv(emit, x)
        c = emit(op.add(a, b))
        return emit(op.multiply(emit(op.add(c, a)), emit(op.sigmoid(c))))

    found = [binding.var for group in groups_of(body) for binding in group.bindings]
    assert len(found) == len(set(found)) == 6


NO_ANCHOR = {
    "weight is an activation": lambda x: op.nn.conv2d(x, op.reshape(x, (4, 8, 3, 6))),
    "channels last": lambda x: op.nn.conv2d(x, const(3, 3, 6, 4), data_layout="NHWC", kernel_layout="HWIO"),
    "adaptive pooling to 2x2": lambda x: op.nn.adaptive_avg_pool2d(x, (2, 2)),
    "pooling with channels last": lambda x: op.nn.max_pool2d(x, (2, 2), layout="NHWC"),
    "cubic resize": lambda x: op.image.resize2d(x, (12, 12), layout="NCHW", method="cubic"),
    "concat of rows": lambda x: op.concat([x, x], axis=2),
    "slice of channels and rows": lambda x: op.strided_slice(x, [1, 2], [0, 0], [4, 3], assume_inbound=False),
    "reversed": lambda x: op.strided_slice(x, [1], [7], [-9], [-1]),
    "padding of the batch": lambda x: op.nn.pad(x, [1, 0, 0, 0, 0, 0, 0, 0]),
    "cropping": lambda x: op.nn.pad(x, [0, 0, 0, 0, -1, 0, 0, 0]),
    "reflection": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_mode="reflect"),
    "channels padded with ones": lambda x: op.nn.pad(x, [0, 0, 1, 0, 0, 0, 0, 0], pad_value=1.0),
    "take of rows": lambda x: op.take(x, constant(np.array([1, 0])), axis=2),
    "softmax": lambda x: op.nn.softmax(x, axis=1),
}


@pytest.mark.parametrize("name", NO_ANCHOR)
def test_no_kernel_for(name):
    flow = Dataflow(module(lambda emit, x: emit(NO_ANCHOR[name](x)), x=SHAPE))
    assert not is_anchor(flow.bindings[-2], flow)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 6), (2, 8, 6, 6, 1)])
def test_other_ranks_are_left_alone(shape):
    assert groups_of(lambda emit, x: emit(op.nn.relu(x)), x=shape) == []
    assert logical_shape(shape) is None


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((2, 8, 1, 1), True), ((2, 1, 6, 6), True), ((1, 8, 1, 1), False), ((2, 8, 6, 1), False), ((2, 1, 1, 1), False)],
)
def test_operands_kernels_can_fetch(shape, fits):
    groups = groups_of(lambda emit, x, other: emit(op.multiply(x, other)), x=SHAPE, other=shape)
    assert len(groups) == fits


@pytest.mark.parametrize(
    ("source", "target", "view"),
    [
        ((2, 8, 1, 1), (2, 8), True),
        ((2, 8), (2, 8, 1, 1), True),
        ((2, 8, 2, 1), (2, 16), False),
        ((2, 8), (1, 16), False),
    ],
)
def test_views_move_nothing(source, target, view):
    flow = Dataflow(module(lambda emit, x: emit(op.reshape(x, target)), x=source))
    assert is_view(flow.bindings[0].value) is view


@pytest.mark.parametrize(
    ("axes", "begin", "end", "strides", "expected"),
    [
        ([1], [2], [5], None, {1: (2, 1)}),
        ([1], [-3], [8], None, {1: (5, 1)}),
        ([2, 3], [0, 1], [6, 6], [2, 2], {2: (0, 2), 3: (1, 2)}),
        ([0, 1, 2, 3], [0, 0, 1, 0], [2, 8, 6, 6], None, {2: (1, 1)}),
        ([0], [1], [2], None, None),
    ],
)
def test_slice_ranges(axes, begin, end, strides, expected):
    flow = Dataflow(module(lambda emit, x: emit(op.strided_slice(x, axes, begin, end, strides)), x=SHAPE))
    assert slice_ranges(flow.bindings[0].value) == expected

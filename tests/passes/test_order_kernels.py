"""OrderKernels: every group of operators becomes one order whose meaning is the QDQ graph's."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, constant, f32, module
from tests.passes.qdq_testing import (
    assert_orders_compute,
    int8_weight,
    leftovers,
    main_orders,
    ordered,
    orders,
    qdq,
    quantize,
)  # fmt: skip
from tvm_int8.kernel_op import constants_of, is_kernel, stored_of
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value
from tvm_int8.specs import NOTHING, ChannelGather, Conv2d, Elementwise, Operand, Pool2d, Resize2d, Window2d

op = relax.op
SHAPE = (2, 5, 6, 7)
STEP = 0.05  # the scale every output of this file is stored in


def integer(compute, **inputs):
    """A module whose only input(s) are quantised, then `compute`d on, then quantised again."""

    def body(emit, *tensors):
        loaded = [qdq(emit, x, 0.04 + 0.02 * i, 128 - 9 * i) for i, x in enumerate(tensors)]
        return qdq(emit, compute(emit, *loaded), STEP, 100)

    return module(body, **(inputs or {"x": SHAPE}))


def conv(emit, x, out=6, kernel=3, padding=1, scale=0.01, **options):
    groups = options.get("groups", 1)
    weight = int8_weight(emit, out, x.ty.shape[1].value // groups, kernel, kernel, scale=scale)
    return emit(op.nn.conv2d(x, weight, padding=padding, **options), "conv")


def biased(emit, x, **options):
    y = conv(emit, x, **options)
    return emit(op.add(y, const(1, y.ty.shape[1].value, 1, 1)), "bias")


def only(mod, kind):
    """The one kernel that is left beside conversions; nothing is left beside kernels."""
    after = assert_orders_compute(mod, STEP)
    assert leftovers(after) == []
    (spec,) = main_orders(after)
    assert type(spec) is kind
    return spec


# Anchors


CONVOLUTIONS = {
    "same": {},
    "strided": {"strides": 2},
    "dilated": {"dilation": 2, "padding": 2},
    "uneven padding": {"padding": (0, 1, 2, 1)},
    "pointwise": {"kernel": 1, "padding": 0},
    "depthwise": {"out": 5, "groups": 5, "scale": 0.02},
    "depthwise with multiplier": {"out": 10, "groups": 5, "scale": 0.02},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    spec = only(integer(lambda emit, x: biased(emit, x, **CONVOLUTIONS[name])), Conv2d)
    assert [t.dtype for t in spec.inputs] == ["uint8"]
    assert spec.result.dtype == "uint8"
    assert spec.pad_value == 128
    assert spec.groups == CONVOLUTIONS[name].get("groups", 1)
    assert [operand.kind for operand in spec.program.operands] == ["acc", "channel"]
    assert [step[0] for step in spec.program.steps] == ["mul"], "the bias belongs into the accumulator"


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups):
    def compute(emit, x):
        weight = int8_weight(emit, 4, 3, 3, 2, axis=1, scale=0.02)
        y = op.nn.conv2d_transpose(x, weight, strides=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=groups)
        return emit(op.nn.relu(emit(op.add(emit(y), const(1, 3 * groups, 1, 1)))))

    spec = only(integer(compute, x=(1, 4, 5, 6)), Conv2d)
    assert spec.transposed
    assert spec.groups == groups


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1)),
        lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2), ceil_mode=True),
        lambda x: op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1)),
        lambda x: op.nn.avg_pool2d(x, (3, 3), (1, 1), (1, 1), count_include_pad=True),
        lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
    ],
)
def test_pooling(pool):
    spec = only(integer(lambda emit, x: emit(op.nn.relu(emit(pool(x))))), Pool2d)
    assert spec.zero_point == 128
    assert spec.output.low == 0.0


@pytest.mark.parametrize("method", ["nearest_neighbor", "linear"])
def test_resize(method):
    def compute(emit, x):
        modes = {"coordinate_transformation_mode": "asymmetric", "rounding_method": "floor"}
        return emit(op.image.resize2d(x, (12, 14), layout="NCHW", method=method, **modes))

    spec = only(integer(compute), Resize2d)
    assert (len(spec.rows), len(spec.cols)) == (12, 14)


def test_concat_brings_every_input_to_the_scale_of_the_result():
    spec = only(integer(lambda emit, x, y: emit(op.concat([x, y, x], axis=1)), x=SHAPE, y=(2, 3, 6, 7)), ChannelGather)
    np.testing.assert_allclose(spec.scales, [0.04 / STEP, 0.06 / STEP, 0.04 / STEP], rtol=1e-6)
    assert spec.zero_points == (128, 119, 128)
    assert spec.source[4:9] == ((0, 4), (1, 0), (1, 1), (1, 2), (2, 0))


def test_take_of_channels():
    order = np.array([3, 4, 0, 0])
    spec = only(integer(lambda emit, x: emit(op.take(x, constant(order), axis=1))), ChannelGather)
    assert spec.source == ((0, 3), (0, 4), (0, 0), (0, 0))


def test_slice_of_channels():
    spec = only(integer(lambda emit, x: emit(op.strided_slice(x, [1], [1], [5], [2]))), ChannelGather)
    assert spec.source == ((0, 1), (0, 3))


def test_zeros_around_the_channels():
    spec = only(integer(lambda emit, x: emit(op.nn.pad(x, [0, 0, 1, 2, 0, 0, 0, 0]))), ChannelGather)
    assert spec.source == (NOTHING, *((0, c) for c in range(5)), NOTHING, NOTHING)


def same_scale(compute):
    """A module whose input and output have the same scale, as the plan gives it to what only moves."""
    return module(lambda emit, x: qdq(emit, compute(emit, qdq(emit, x, STEP, 100)), STEP, 100), x=SHAPE)


def test_slice_of_rows_and_columns_moves_bytes():
    spec = only(same_scale(lambda emit, x: emit(op.strided_slice(x, [2, 3], [1, 0], [6, 7], [1, 3]))), Window2d)
    assert (spec.start, spec.step) == ((1, 0), (1, 3))
    assert spec.inputs[0].dtype == spec.result.dtype == "uint8"


@pytest.mark.parametrize("value", [0.0, 1.0, -100.0])
def test_pad_of_rows_and_columns_moves_bytes(value):
    spec = only(same_scale(lambda emit, x: emit(op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 3], pad_value=value))), Window2d)
    assert spec.start == (-1, 0)
    assert spec.pad_value == np.clip(round(value / STEP) + 100, 0, 255)


def test_a_slice_that_changes_the_scale_is_followed_by_a_conversion():
    after = assert_orders_compute(integer(lambda emit, x: emit(op.strided_slice(x, [2], [1], [6]))), STEP)
    assert leftovers(after) == []
    assert [type(spec) for spec in orders(after)].count(Window2d) == 1


# Epilogues


def squared(emit, y):
    return emit(op.power(y, constant(np.float32(2))))


ACTIVATIONS = {
    "relu": (lambda emit, y: emit(op.nn.relu(y)), []),
    "relu6": (lambda emit, y: emit(op.clip(y, 0.0, 6.0)), []),
    "leaky": (lambda emit, y: emit(op.nn.leakyrelu(y, 0.1)), ["prelu"]),
    "prelu": (lambda emit, y: emit(op.nn.prelu(y, const(6, seed=4))), ["prelu"]),
    "sigmoid": (lambda emit, y: emit(op.sigmoid(y)), ["sigmoid", "mul"]),
    "silu": (lambda emit, y: emit(op.multiply(y, emit(op.sigmoid(y)))), ["sigmoid"]),
    "silu operator": (lambda emit, y: emit(op.nn.silu(y)), ["sigmoid"]),
    "gelu": (lambda emit, y: emit(op.nn.gelu(y)), ["erf"]),
    "tanh": (lambda emit, y: emit(op.tanh(y)), ["tanh"]),
    "square": (squared, []),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_epilogues(name):
    activation, steps = ACTIVATIONS[name]
    spec = only(integer(lambda emit, x: activation(emit, biased(emit, x))), Conv2d)
    used = [step[0] for step in spec.program.steps]
    assert all(step in used for step in steps)
    assert spec.macs == 2 * 6 * 6 * 7 * 5 * 9


def test_hard_swish_is_an_epilogue():
    def compute(emit, x):
        y = biased(emit, x)
        gate = emit(op.clip(emit(op.add(y, constant(np.float32(3)))), 0.0, 6.0))
        return emit(op.multiply(emit(op.multiply(y, gate)), constant(np.float32(1 / 6))))

    only(integer(compute), Conv2d)


def test_relu_and_the_range_of_bytes_are_one_clamp():
    spec = only(integer(lambda emit, x: emit(op.clip(biased(emit, x), 0.0, 6.0))), Conv2d)
    assert (spec.output.low, spec.output.zero_point) == (0.0, 100)
    assert spec.output.high == pytest.approx(6.0 / STEP, rel=1e-5)
    assert [step[0] for step in spec.program.steps] == ["mul"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_residual_on_either_side(side):
    def compute(emit, x, residual):
        y = biased(emit, x)
        return emit(op.nn.relu(emit(op.add(y, residual) if side == "left" else op.add(residual, y))))

    spec = only(integer(compute, x=SHAPE, residual=(2, 6, 6, 7)), Conv2d)
    assert [t.dtype for t in spec.inputs] == ["uint8", "uint8"]
    assert sorted(operand.kind for operand in spec.program.operands) == ["acc", "channel", "tensor"]
    assert [step[0] for step in spec.program.steps] == ["mul", "fma"]


def test_the_convolution_may_read_its_own_residual():
    spec = only(integer(lambda emit, x: emit(op.subtract(x, biased(emit, x, out=5)))), Conv2d)
    assert len(spec.inputs) == 2


def test_squeeze_and_excitation_multiplies_by_a_vector():
    def compute(emit, x, gate):
        return emit(op.multiply(biased(emit, x), gate))

    spec = only(integer(compute, x=SHAPE, gate=(2, 6, 1, 1)), Conv2d)
    assert Operand("vector", "uint8", 119) in spec.program.operands


def test_spatial_attention_multiplies_by_a_map():
    spec = only(integer(lambda emit, x, m: emit(op.multiply(x, m)), x=SHAPE, m=(2, 1, 6, 7)), Elementwise)
    assert sorted(operand.kind for operand in spec.program.operands) == ["map", "tensor"]


def test_a_float_residual_is_read_as_it_is():
    def body(emit, x, residual):
        y = emit(op.add(biased(emit, qdq(emit, x)), residual))
        return qdq(emit, y, STEP, 100)

    spec = only(module(body, x=SHAPE, residual=(2, 6, 6, 7)), Conv2d)
    assert [t.dtype for t in spec.inputs] == ["uint8", "float32"]


def test_a_residual_used_twice_is_read_once():
    spec = only(integer(lambda emit, x: emit(op.multiply(x, emit(op.sigmoid(x))))), Elementwise)
    assert len(spec.inputs) == 1


# What must not be fused


def test_a_result_of_two_consumers_is_stored():
    def compute(emit, x):
        y = qdq(emit, biased(emit, x), STEP, 90)
        return emit(op.add(emit(op.nn.max_pool2d(y, (1, 1))), biased(emit, y)))

    after = assert_orders_compute(integer(compute), STEP)
    assert [type(spec) for spec in main_orders(after)].count(Conv2d) == 2
    assert leftovers(after) == []


def test_a_convolution_that_is_an_output_and_goes_on():
    def body(emit, x):
        y = biased(emit, qdq(emit, x))
        return [y, qdq(emit, emit(op.nn.relu(y)), STEP, 0)]

    after = assert_orders_compute(module(body, x=SHAPE), 5e-4, STEP)  # the bias is rounded to int32
    conv_spec, relu = (
        main_orders(after)[0],
        [s for s in orders(after) if s.output.low == 0.0 and s.result.dtype == "uint8"],
    )
    assert conv_spec.result.dtype == "float32"
    assert relu


def test_weights_that_are_not_int8_or_not_symmetric_stay_float():
    def body(emit, x):
        values, scale = constant(np.arange(30, dtype="uint8").reshape(6, 5, 1, 1)), constant(np.float32(0.01))
        weight = emit(op.dequantize(values, scale, constant(np.uint8(7))))
        return emit(op.nn.conv2d(qdq(emit, x), weight))

    (spec,) = main_orders(assert_orders_compute(module(body, x=SHAPE), 1e-4))
    assert [t.dtype for t in spec.inputs] == ["float32"]


def test_islands_stay_and_get_float():
    def body(emit, x):
        return emit(op.nn.softmax(biased(emit, qdq(emit, x)), axis=1))

    after = ordered(module(body, x=SHAPE))
    assert leftovers(after) == ["nn.softmax"]
    assert main_orders(after)[0].result.dtype == "float32"


BY_CHANNEL = constant(f32(5, low=0.05, high=0.1)), constant(np.array([0, 3, 7, 128, 255], "uint8"))


def by_channel(emit, x):
    q = emit(op.quantize(x, *BY_CHANNEL, axis=1, out_dtype="uint8"))
    return emit(op.dequantize(q, *BY_CHANNEL, axis=1))


def test_channels_in_scales_of_their_own():
    def body(emit, x):
        y = by_channel(emit, emit(op.nn.leakyrelu(x, 0.1)))
        return emit(op.nn.relu(emit(op.add(y, x))))

    after = assert_orders_compute(module(body, x=SHAPE), 1e-5)
    assert [spec.result.dtype for spec in orders(after)] == ["uint8", "float32"]


def test_only_depthwise_convolutions_compute_on_channels_in_scales_of_their_own():
    weight = np.random.default_rng(0).integers(-127, 128, (5, 1, 3, 3)).astype("int8")
    scale, zero = constant(f32(5, low=0.01, high=0.02)), constant(np.zeros(5, "int8"))

    def depthwise(emit, x):
        w = emit(op.dequantize(constant(weight), scale, zero, axis=0))
        return emit(op.nn.conv2d(by_channel(emit, x), w, padding=1, groups=5))

    def dense(emit, x):
        w = emit(op.dequantize(constant(np.repeat(weight, 5, 1)), scale, zero, axis=0))
        return emit(op.nn.conv2d(by_channel(emit, x), w, padding=1))

    after = assert_orders_compute(module(depthwise, x=SHAPE), 1e-4)
    spec = orders(after)[-1]
    assert (spec.inputs[0].dtype, spec.pad_value) == ("uint8", None)
    np.testing.assert_array_equal(constants(after, "Conv2d")["pad"], const_value(BY_CHANNEL[1]))
    assert orders(assert_orders_compute(module(dense, x=SHAPE), 1e-4))[-1].inputs[0].dtype == "float32"


# Float networks, stored scales, integer biases


def test_float_networks_use_the_same_kernels():
    def body(emit, x):
        y = emit(op.nn.conv2d(x, const(6, 5, 3, 3), padding=1))
        y = emit(op.nn.relu(emit(op.add(y, const(1, 6, 1, 1)))))
        return emit(op.add(emit(op.nn.adaptive_avg_pool2d(y, (1, 1))), const(1, 6, 1, 1, seed=9)))

    after = assert_orders_compute(module(body, x=SHAPE), 1e-4)
    assert [type(spec) for spec in orders(after)] == [Conv2d, Pool2d]
    assert all(spec.result.dtype == "float32" for spec in orders(after))


def test_orders_say_how_their_integers_are_to_be_read():
    after = ordered(integer(lambda emit, x: biased(emit, x)))
    stored = [stored_of(binding.value) for binding in Dataflow(after).bindings if is_kernel(binding.value)]
    expected = [(0.04, 128), (STEP, 100)]
    assert stored.pop() is None
    np.testing.assert_allclose(np.reshape(stored, (2, 2)), expected, rtol=1e-6)


def constants(after, kind):
    (call,) = [
        b.value for b in Dataflow(after).bindings if is_kernel(b.value) and f'"kind": "{kind}"' in b.value.attrs["spec"]
    ]
    return dict(constants_of(call))


def test_the_zero_point_goes_into_the_integer_bias():
    after = ordered(integer(lambda emit, x: conv(emit, x)))
    found = constants(after, "Conv2d")
    assert found["bias"].dtype == np.int32
    np.testing.assert_array_equal(found["bias"], -128 * found["weight"].astype(int).sum((1, 2, 3)))


def test_a_bias_too_large_for_int32_stays_an_addition():
    def compute(emit, x):
        return emit(op.add(conv(emit, x, scale=1e-9), const(1, 6, 1, 1, low=-3, high=3)))

    spec = only(integer(compute), Conv2d)
    assert [step[0] for step in spec.program.steps] == ["fma"]


def test_layers_keep_the_users_names():
    mod = module(
        lambda emit, x: quantize(emit, emit(op.nn.relu(conv(emit, qdq(emit, x))))), {"conv": "/stem/conv"}, x=SHAPE
    )
    assert [spec.layer for spec in main_orders(ordered(mod))] == ["/stem/conv"]


def test_a_kernel_that_ends_in_a_view_is_read_through_it():
    """Float squeeze, flatten, dense: the pool's kernel delivers the view, so readers must not look behind it."""

    def body(emit, x):
        flat = emit(op.reshape(emit(op.nn.adaptive_avg_pool2d(x, (1, 1))), (2, 5)))
        return emit(op.nn.conv2d(emit(op.reshape(flat, (2, 5, 1, 1))), const(4, 5, 1, 1)))

    after = assert_orders_compute(module(body, x=SHAPE), 1e-4)
    assert leftovers(after) == []
    assert [type(spec) for spec in orders(after)] == [Pool2d, Conv2d]

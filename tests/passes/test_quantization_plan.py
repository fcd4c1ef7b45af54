"""What is stored as integers: between layers that compute in INT8, and nowhere else."""

import pytest
from tvm import relax

from tests.passes.pass_testing import const, module
from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.lrn_op import lrn
from tvm_int8.passes.quantization_plan import plan_quantization

op = relax.op
SHAPE = (1, 8, 6, 6)


def conv(emit, x, name="conv"):
    return emit(op.nn.conv2d(x, const(8, 8, 3, 3), padding=1), name)


def planned(body, layer_names=None, config=None, **inputs):
    mod = module(body, layer_names, **(inputs or {"x": SHAPE}))
    return plan_quantization(Dataflow(mod), config or QuantizationConfig())


def names(variables):
    return [var.name for var in variables]


def test_data_stays_integer_between_layers_and_outputs_are_float():
    def body(emit, x):
        y = emit(op.nn.relu(conv(emit, x, "a")), "relu")
        return emit(op.nn.softmax(conv(emit, y, "b"), axis=1), "softmax")

    plan = planned(body)
    assert set(names(plan.quantized)) == {"x", "relu"}
    assert [(unit.kind, unit.op) for unit in plan.units][:3] == [
        ("compute", "nn.conv2d"),
        ("compute", "nn.conv2d"),
        ("float", "nn.softmax"),
    ]
    assert "softmax" in plan.units[2].reason


@pytest.mark.parametrize(
    "carry",
    [
        lambda emit, x: emit(op.nn.max_pool2d(x, (2, 2), (2, 2)), "carried"),
        lambda emit, x: emit(op.nn.avg_pool2d(x, (2, 2), (2, 2)), "carried"),
        lambda emit, x: emit(lrn(x, 5, 2, 1e-4, 0.75, 1.0), "carried"),
        lambda emit, x: emit(op.image.resize2d(x, (12, 12), layout="NCHW", method="nearest_neighbor"), "carried"),
        lambda emit, x: emit(op.concat([x, x], axis=1), "carried"),
        lambda emit, x: emit(op.permute_dims(x, (0, 1, 3, 2)), "carried"),
        lambda emit, x: emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]), "carried"),
    ],
)
def test_operators_in_between_carry_integers(carry):
    def body(emit, x):
        y = carry(emit, emit(op.nn.max_pool2d(conv(emit, x), (1, 1)), "inner"))
        channels = y.ty.shape[1].value
        return emit(op.nn.conv2d(y, const(8, channels, 1, 1)), "last")

    assert {"x", "conv", "inner", "carried"} == set(names(planned(body).quantized))


def test_nothing_is_quantised_for_the_sake_of_an_output():
    """A pool in front of the output reads float: quantising the convolution would only cost accuracy."""
    plan = planned(lambda emit, x: emit(op.nn.max_pool2d(conv(emit, x), (2, 2)), "pool"))
    assert names(plan.quantized) == ["x"]


def test_a_network_without_layers_stays_float():
    plan = planned(lambda emit, x: emit(op.nn.relu(emit(op.nn.max_pool2d(x, (2, 2))))))
    assert not plan.quantized
    assert plan.points() == []


def test_what_only_moves_takes_over_the_scale():
    def body(emit, x):
        y = emit(op.nn.max_pool2d(conv(emit, x, "first"), (2, 2)), "pool")
        y = emit(op.image.resize2d(y, (6, 6), layout="NCHW", method="nearest_neighbor"), "up")
        return conv(emit, y, "last")

    plan = planned(body)
    assert names(plan.points()) == ["first", "x"] or names(plan.points()) == ["x", "first"]
    assert {var.name: plan.origin(var).name for var in plan.quantized} == {
        "x": "x", "first": "first", "pool": "first", "up": "first",
    }  # fmt: skip


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: op.nn.avg_pool2d(x, (2, 2)),
        lambda x: op.image.resize2d(x, (6, 6), layout="NCHW", method="linear"),
        lambda x: op.concat([x, x], axis=1),
    ],
)
def test_what_mixes_values_has_a_range_of_its_own(mixed):
    def body(emit, x):
        y = emit(mixed(conv(emit, x, "first")), "mixed")
        return emit(op.nn.conv2d(y, const(8, y.ty.shape[1].value, 1, 1)), "last")

    assert "mixed" in names(planned(body).points())


def test_a_pool_with_a_clip_behind_has_a_range_of_its_own():
    def body(emit, x):
        pooled = emit(op.nn.max_pool2d(conv(emit, x, "first"), (2, 2)), "pool")
        return conv(emit, emit(op.clip(pooled, 0.0, 1.0), "clip"), "last")

    assert "clip" in names(planned(body).points())


def two_layers(emit, x):
    return conv(emit, conv(emit, x, "first"), "second")


NAMES = {"first": "/stem/conv", "second": "/head/conv"}


@pytest.mark.parametrize("pattern", ["/stem/conv", "/stem/*"])
def test_excluded_layers_compute_in_float(pattern):
    plan = planned(two_layers, NAMES, QuantizationConfig(exclude=[pattern]))
    kinds = {unit.layer: unit.kind for unit in plan.units}
    assert kinds["/stem/conv"] == "float"
    assert kinds["/head/conv"] == "compute"
    assert names(plan.quantized) == ["first"]
    assert [unit.reason for unit in plan.units if unit.layer == "/stem/conv"] == ["excluded by the configuration"]


@pytest.mark.parametrize("pattern", ["nn.conv2d", "conv2d", "*"])
def test_excluding_a_kind_excludes_all_of_it(pattern):
    assert not planned(two_layers, NAMES, QuantizationConfig(exclude=[pattern])).quantized


def test_integers_are_no_quantisation_points():
    def body(emit, x, index):
        y = emit(op.take(conv(emit, x, "first"), emit(op.astype(index, "int64")), axis=1), "taken")
        return conv(emit, y, "last")

    plan = planned(body, x=SHAPE, index=(8,))
    assert all(str(var.ty.dtype) == "float32" for var in plan.quantized)
    assert "index" not in names(plan.quantized)


def depthwise(emit, x, name):
    return emit(op.nn.conv2d(x, const(8, 1, 3, 3), padding=1, groups=8), name)


def pooled(emit, x):
    return emit(op.nn.max_pool2d(x), "pool")


@pytest.mark.parametrize(
    "body, by_channel",
    [
        (lambda emit, x: depthwise(emit, conv(emit, x, "first"), "dw"), {"first"}),
        (lambda emit, x: conv(emit, conv(emit, x, "first"), "second"), {"first"}),
        (lambda emit, x: conv(emit, emit(op.add(conv(emit, x, "a"), x), "sum"), "last"), {"sum"}),
        (lambda emit, x: depthwise(emit, x, "dw"), set()),  # an input
        (lambda emit, x: conv(emit, pooled(emit, conv(emit, x, "first")), "last"), set()),
    ],
)
def test_channels_have_scales_of_their_own_where_producers_and_readers_allow(body, by_channel):
    assert set(names(planned(body).by_channel)) == by_channel
    assert not planned(body, config=QuantizationConfig(per_channel_activations=False)).by_channel


def test_all_readers_have_to_allow():
    def body(emit, x):
        y = conv(emit, x, "first")
        return emit(op.concat([conv(emit, y, "second"), conv(emit, pooled(emit, y), "third")], axis=1), "both")

    assert not planned(body).by_channel


def test_a_broadcast_operand_has_one_scale():
    def body(emit, x):
        y = conv(emit, x, "first")
        gate = conv(emit, emit(op.nn.adaptive_avg_pool2d(y, (1, 1)), "mean"), "gate")
        return conv(emit, emit(op.multiply(y, gate), "gated"), "last")

    assert set(names(planned(body, x=(1, 8, 1, 1)).by_channel)) >= {"gated"}
    assert "gate" not in names(planned(body).by_channel)

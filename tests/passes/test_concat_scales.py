"""Scales of concatenations: parts take them over where that costs nothing, and networks are more exact for it."""

import numpy as np
import pytest
from tvm import relax

from tests.passes.pass_testing import const, module
from tvm_int8.config import QuantizationConfig
from tvm_int8.passes.concat_scales import concat_scales
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.quantization_plan import plan_quantization
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange
from tvm_int8.quantization.observers import HistogramObserver

op = relax.op


def conv(emit, x, name):
    return emit(op.nn.conv2d(x, const(4, x.ty.shape[1].value, 1, 1)), name)


def concat(emit, *parts, name):
    return emit(op.concat(list(parts), axis=1), name)


def chosen(body, plain: bool = False, **ranges) -> dict[str, str]:
    """Tensor -> whose scale it has; `ranges` are (low, high) or a TensorRange."""

    def network(emit, x):
        return [conv(emit, y, "last") for y in body(emit, x)]

    plan = plan_quantization(Dataflow(module(network, x=(1, 3, 8, 8))), QuantizationConfig())
    table = {name: r if isinstance(r, TensorRange) else TensorRange(*r, "minmax", 1) for name, r in ranges.items()}
    found = concat_scales(plan, CalibrationTable(table), plain_convolutions=plain)
    return {var.name: to.name for var, to in found.items()}


def test_parts_that_nothing_else_reads_take_the_scale():
    def body(emit, x):
        return [concat(emit, conv(emit, x, "a"), conv(emit, x, "b"), name="c")]

    assert chosen(body, x=(-1, 1), a=(-9, 9), b=(-0.1, 0.1), c=(-8, 8)) == {"a": "c", "b": "c"}


@pytest.mark.parametrize(("low", "plain", "takes"), [(-8, True, False), (-8, False, True), (0, True, True)])
def test_a_relu_stays_the_clamp_to_the_smallest_integer_of_plain_convolutions(low, plain, takes):
    def body(emit, x):
        a = emit(op.nn.relu(conv(emit, x, "inner")), "a")
        return [concat(emit, a, conv(emit, x, "b"), name="c")]

    found = chosen(body, plain, x=(-1, 1), a=(0, 4), b=(low, 8), c=(low, 8))
    assert found == ({"a": "c", "b": "c"} if takes else {"b": "c"})


@pytest.mark.parametrize(("own", "takes"), [((-8, 8), True), ((-6, 6), True), ((-5, 5), False), ((-9, 9), False)])
def test_parts_that_others_read_take_it_if_it_is_as_good(own, takes):
    def body(emit, x):
        a = conv(emit, x, "a")
        return [concat(emit, a, conv(emit, x, "b"), name="c"), a]

    found = chosen(body, x=(-1, 1), a=own, b=(-1, 1), c=(-8, 8))
    assert found == ({"a": "c", "b": "c"} if takes else {"b": "c"})


def test_few_values_beyond_the_scale_matter_little():
    """What a range cuts off is looked up in the distribution."""

    def body(emit, x):
        a = conv(emit, x, "a")
        return [concat(emit, a, conv(emit, x, "b"), name="c"), a]

    observer, values = HistogramObserver("a"), np.random.default_rng(0).uniform(-8, 8, 100_000)
    values[0] = 9.0
    observer.update(values.astype(np.float32), 0)
    wide = TensorRange(-8.0, 9.0, "minmax", 1, observer.histogram())
    assert "a" in chosen(body, x=(-1, 1), a=wide, b=(-1, 1), c=(-8, 8))
    observer.update(np.full(10_000, 12.0, np.float32), 1)
    wide = TensorRange(-8.0, 12.0, "minmax", 1, observer.histogram())
    assert "a" not in chosen(body, x=(-1, 1), a=wide, b=(-1, 1), c=(-8, 8))


def test_nested_concatenations_have_the_outermost_scale():
    def body(emit, x):
        c1 = concat(emit, conv(emit, x, "a"), conv(emit, x, "b"), name="c1")
        c2 = concat(emit, c1, conv(emit, c1, "d"), name="c2")
        return [concat(emit, c2, conv(emit, c2, "e"), name="c3")]

    ranges = {"x": (-1, 1), "a": (-1, 1), "b": (-1, 1), "d": (-1, 1), "e": (-1, 1)}
    near = chosen(body, **ranges, c1=(-7, 7), c2=(-8, 8), c3=(-9, 9))
    assert near == dict.fromkeys(["a", "b", "c1", "c2", "d", "e"], "c3")
    far = chosen(body, **ranges, c1=(-3, 3), c2=(-8, 8), c3=(-9, 9))
    assert far == {"a": "c1", "b": "c1", "c2": "c3", "d": "c3", "e": "c3"}


def test_a_pool_changes_the_scale_on_the_way():
    def body(emit, x):
        a = conv(emit, x, "a")
        pool = emit(op.nn.max_pool2d(a, (3, 3), padding=(1, 1)), "pool")
        return [concat(emit, pool, conv(emit, x, "b"), name="c"), a]

    assert chosen(body, x=(-1, 1), a=(-1, 1), b=(-1, 1), c=(-8, 8)) == {"pool": "c", "b": "c"}
    assert chosen(body, x=(-1, 1), a=(-7, 7), b=(-1, 1), c=(-8, 8)) == {"a": "c", "b": "c"}


def test_slices_have_the_scale_of_what_they_come_from():
    def body(emit, x):
        a = conv(emit, x, "a")
        left, right = (emit(op.strided_slice(a, [1], [at], [at + 2]), f"part{at}") for at in (0, 2))
        return [concat(emit, left, conv(emit, right, "b"), name="c")]

    assert chosen(body, x=(-1, 1), a=(-7, 7), b=(-1, 1), c=(-8, 8)) == {"a": "c", "b": "c"}
    assert chosen(body, x=(-1, 1), a=(-1, 1), b=(-1, 1), c=(-8, 8)) == {"b": "c"}


def test_inputs_and_two_concatenations_keep_their_scales():
    def body(emit, x):
        a = conv(emit, x, "a")
        return [concat(emit, a, x, name="c"), concat(emit, a, conv(emit, x, "b"), name="d")]

    assert chosen(body, x=(-1, 1), a=(-1, 1), b=(-1, 1), c=(-8, 8), d=(-2, 2)) == {"b": "d"}

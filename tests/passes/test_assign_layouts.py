"""AssignLayouts: packed between kernels, plain at the border, few conversions, the same numbers."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import const, constant, f32, module, names
from tests.passes.qdq_testing import int8_weight, is_conversion, leftovers, ordered, orders, qdq, random_inputs
from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, spec_of
from tvm_int8.passes.assign_layouts import AssignLayouts, pack, unpack
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import const_value, op_name, shape_of
from tvm_int8.reference import evaluate
from tvm_int8.reference.network import run_network
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Elementwise, Resize2d

op = relax.op


def run_physical(mod: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Evaluate kernel orders on tensors as they stand in memory; padding lanes of results hold garbage."""
    flow = Dataflow(mod)
    values = dict(zip(flow.params, inputs, strict=True))
    for binding in flow.bindings:
        call = binding.value
        if is_kernel(call):
            spec, arrays = spec_of(call), []
            for expr, tensor in zip(inputs_of(call), spec.inputs, strict=True):
                array = values[expr] if expr in values else const_value(expr)
                assert array.shape == tensor.physical_shape
                assert array.dtype == tensor.dtype
                arrays.append(unpack(array, tensor.shape) if tensor.block else array.reshape(tensor.shape))
            result = evaluate(spec, arrays, Constants.of(constants_of(call)))
            values[binding.var] = _stored(result, spec.result)
        else:
            assert op_name(call) == "reshape"
            values[binding.var] = values[call.args[0]].reshape(shape_of(binding.var))
        assert values[binding.var].shape == shape_of(binding.var)
    return [values[output] for output in flow.outputs]


def _stored(result, tensor):
    if not tensor.block:
        return np.ascontiguousarray(result).reshape(tensor.physical_shape)
    packed = pack(result, tensor.block)
    lanes = pack(np.ones(result.shape, bool), tensor.block)
    return np.where(lanes, packed, np.asarray(77, packed.dtype))


def placed(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with layouts, which computes what the ordered one does."""
    before = ordered(mod)
    after = AssignLayouts()(before)
    relax.analysis.well_formed(after)
    if not leftovers(after) or set(leftovers(after)) == {"reshape"}:
        inputs = random_inputs(mod)
        for expected, actual in zip(run_network(before, *inputs), run_physical(after, *inputs), strict=True):
            np.testing.assert_array_equal(actual, expected)
    return after


def conv(emit, x, out=20, **options):
    return emit(op.nn.conv2d(x, int8_weight(emit, out, x.ty.shape[1].value, 3, 3), padding=1, **options), "conv")


def blocks(spec):
    return [*(tensor.block for tensor in spec.inputs), spec.result.block]


def test_an_image_is_packed_in_fours_while_it_is_quantised():
    after = placed(module(lambda emit, x: qdq(emit, conv(emit, qdq(emit, x))), x=(2, 3, 6, 6)))
    assert [blocks(spec) for spec in orders(after)] == [[0, 4], [4, 16], [16, 0]]


def test_other_inputs_are_packed_in_sixteens():
    after = placed(module(lambda emit, x: qdq(emit, conv(emit, qdq(emit, x))), x=(1, 5, 6, 6)))
    assert [blocks(spec) for spec in orders(after)] == [[0, 16], [16, 16], [16, 0]]


def test_between_kernels_nothing_is_converted():
    def body(emit, x):
        y = qdq(emit, conv(emit, qdq(emit, x)), 0.1)
        z = qdq(emit, emit(op.nn.max_pool2d(emit(op.nn.relu(conv(emit, y))), (3, 3), padding=(1, 1))), 0.1, 0)
        return qdq(emit, emit(op.concat([y, z], axis=1)), 0.1)

    after = placed(module(body, x=(1, 20, 6, 6)))
    assert sum(is_conversion(spec) for spec in orders(after)) == 2  # in and out
    assert all(block == 16 for spec in orders(after)[1:-1] for block in blocks(spec))


def test_an_output_that_goes_on_is_unpacked_for_the_caller_only():
    def body(emit, x):
        y = emit(op.nn.relu(conv(emit, qdq(emit, x))), "y")
        return [y, emit(op.nn.max_pool2d(y, (2, 2), (2, 2)))]

    after = placed(module(body, x=(1, 20, 6, 6)))
    unpacking = [spec for spec in orders(after) if isinstance(spec, Elementwise) and blocks(spec) == [16, 0]]
    assert len(unpacking) == 2
    assert "y_packed" in names(after)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_resize_writes_the_output_itself(quantized):
    """Unless somebody reads it packed, or its integers."""

    def body(emit, x):
        y = emit(op.image.resize2d(conv(emit, qdq(emit, x)), (12, 20), method="linear", layout="NCHW"), "resized")
        return [y] if not quantized else [qdq(emit, y, 0.1), y]

    resizes = [spec for spec in orders(placed(module(body, x=(1, 20, 6, 6)))) if isinstance(spec, Resize2d)]
    assert [blocks(spec) for spec in resizes] == [[16, 16 if quantized else 0]]


def test_islands_read_and_write_plain_tensors():
    def body(emit, x):
        y = emit(op.nn.softmax(conv(emit, qdq(emit, x)), axis=1), "soft")
        return conv(emit, qdq(emit, y, 0.01, 0))

    after = placed(module(body, x=(1, 20, 6, 6)))
    (softmax,) = [b for b in Dataflow(after).bindings if op_name(b.value) == "nn.softmax"]
    assert shape_of(softmax.value.args[0]) == shape_of(softmax.var) == (1, 20, 6, 6)


def test_a_tensor_is_converted_once_for_all_its_readers():
    def body(emit, x):
        y = emit(op.nn.relu(conv(emit, qdq(emit, x))), "y")
        return [emit(op.nn.softmax(y, axis=1)), emit(op.nn.softmax(y, axis=2)), emit(op.nn.max_pool2d(y, (2, 2)))]

    after = placed(module(body, x=(1, 20, 6, 6)))
    assert [name for name in names(after) if name.startswith("y_nchw")] == ["y_nchw"]


def test_views_disappear_in_the_packed_layout():
    def body(emit, x):
        y = emit(op.reshape(emit(op.nn.adaptive_avg_pool2d(x, (1, 1))), (2, 20)), "flat")
        y = emit(op.reshape(y, (2, 20, 1, 1)), "back")
        return emit(op.nn.conv2d(y, const(4, 20, 1, 1)))

    assert "reshape" not in leftovers(placed(module(body, x=(2, 20, 6, 6))))


def test_two_dimensional_outputs_keep_their_rank():
    def body(emit, x):
        y = emit(op.nn.conv2d(emit(op.reshape(x, (2, 20, 1, 1))), const(7, 20, 1, 1)))
        return emit(op.reshape(y, (2, 7)))

    after = placed(module(body, x=(2, 20)))
    assert shape_of(Dataflow(after).outputs[0]) == (2, 7)


def test_vectors_and_maps_are_packed_too():
    def body(emit, x, vector, pixels):
        return emit(op.multiply(emit(op.multiply(x, vector)), pixels))

    after = placed(module(body, x=(2, 20, 3, 3), vector=(2, 20, 1, 1), pixels=(2, 1, 3, 3)))
    assert all(block in (0, 16) for spec in orders(after) for block in blocks(spec))


def test_constants_of_activation_shape_are_packed_now():
    after = placed(
        module(
            lambda emit, x: emit(op.nn.relu(emit(op.add(conv(emit, qdq(emit, x)), const(1, 20, 6, 6))))),
            x=(1, 20, 6, 6),
        )
    )
    assert [spec.inputs[1].block for spec in orders(after) if len(spec.inputs) > 1] == [16]


def test_plain_element_wise_networks_stay_plain():
    after = placed(module(lambda emit, x: emit(op.nn.relu(emit(op.add(x, constant(np.float32(1)))))), x=(1, 20, 6, 6)))
    assert [blocks(spec) for spec in orders(after)] == [[0, 0]]


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("channels", [1, 4, 16, 19, 33])
def test_unpack_is_the_inverse_of_pack(channels, block):
    x = f32(2, channels, 3, 5)
    packed = pack(x, block)
    assert packed.shape == (2, -(-channels // block), 3, 5, block)
    np.testing.assert_array_equal(unpack(packed, x.shape), x)

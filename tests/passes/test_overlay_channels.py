"""OverlayChannels: what is concatenated and sliced without copies, what is not, and where everything lies."""

import pytest
import tvm
from tvm import relax

from tests.passes.pass_testing import module, transformed
from tests.passes.qdq_testing import int8_weight, ordered, qdq
from tvm_int8.kernel_op import inputs_of, is_kernel, spec_of
from tvm_int8.overlay_op import is_overlay, offsets_of
from tvm_int8.passes.assign_layouts import AssignLayouts
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.overlay_channels import OverlayChannels
from tvm_int8.specs import ChannelGather

op = relax.op
PLANE = 5 * 3 * 16  # bytes of a block


def conv(emit, x, out, name="conv", **scale):
    weight = int8_weight(emit, out, x.ty.shape[1].value, 1, 1)
    return qdq(emit, emit(op.nn.conv2d(x, weight), name), **scale)


def concat(emit, *parts, **scale):
    return qdq(emit, emit(op.concat(list(parts), axis=1), "concat"), **scale)


def part(emit, x, begin, end):
    return qdq(emit, emit(op.strided_slice(x, [1], [begin], [end]), "part"))


def overlaid(body, batch: int = 1) -> Dataflow:
    """The bindings after the pass, of a network that ends in a convolution of what `body` returns."""

    def network(emit, x):
        x = qdq(emit, x)
        results = body(emit, conv(emit, x, 32, "a"), conv(emit, x, 16, "b"))
        results = results if isinstance(results, list) else [results]
        return [emit(op.nn.conv2d(y, int8_weight(emit, 16, y.ty.shape[1].value, 1, 1)), "last") for y in results]

    before = AssignLayouts()(ordered(module(network, x=(batch, 20, 5, 3))))
    return Dataflow(transformed(OverlayChannels(), before))


def overlays(flow: Dataflow) -> list[list[int]]:
    """The offsets of all overlays, in blocks."""
    found = [offsets_of(binding.value) for binding in flow.bindings if is_overlay(binding.value)]
    assert all(offset % PLANE == 0 for offsets in found for offset in offsets)
    return [[offset // PLANE for offset in offsets] for offsets in found]


def gathers(flow: Dataflow) -> list[ChannelGather]:
    specs = [spec_of(binding.value) for binding in flow.bindings if is_kernel(binding.value)]
    return [spec for spec in specs if isinstance(spec, ChannelGather)]


def test_parts_of_a_concatenation_lie_in_it():
    flow = overlaid(lambda emit, a, b: concat(emit, a, b))
    assert overlays(flow) == [[0, 2]]
    assert not gathers(flow)
    (call,) = [binding.value for binding in flow.bindings if is_overlay(binding.value)]
    assert shape_of(call) == (1, 3, 5, 3, 16)
    assert [shape_of(expr)[1] for expr in call.args] == [2, 1]


def test_a_slice_is_read_where_it_is():
    flow = overlaid(lambda emit, a, b: [part(emit, a, 16, 32), part(emit, a, 0, 9), b])
    assert overlays(flow) == [[-1], [0]]
    assert not gathers(flow)


def test_nested_concatenations_are_written_once():
    def body(emit, a, b):
        first = concat(emit, a, b)
        second = concat(emit, first, conv(emit, first, 16))
        return concat(emit, conv(emit, second, 32), second)

    flow = overlaid(body)
    assert overlays(flow) == [[0, 2], [0, 3], [2, 0]]
    assert not gathers(flow)


def test_growing_concatenations_of_the_same_parts_are_one():
    def body(emit, a, b):
        first = concat(emit, a, b)
        return concat(emit, a, b, conv(emit, first, 16))

    flow = overlaid(body)
    assert overlays(flow) == [[0, 2], [0, 2, 3]]
    assert not gathers(flow)


def test_slices_go_on_into_concatenations():
    def body(emit, a, b):
        left, right = part(emit, a, 0, 16), part(emit, a, 16, 32)
        return concat(emit, left, right, conv(emit, right, 32), b)

    flow = overlaid(body)
    assert overlays(flow) == [[0], [-1], [2, 0, 1, 4]]  # the largest first
    assert not gathers(flow)


def test_what_needs_another_scale_is_copied_beside_what_stays():
    flow = overlaid(lambda emit, a, b: concat(emit, a, conv(emit, b, 48, scale=0.02), b))
    (copy,) = gathers(flow)
    assert copy.result.shape == (1, 48, 5, 3)
    assert copy.source == tuple((0, c) for c in range(48))
    assert overlays(flow) == [[2, 0, 5]]


def test_a_part_that_is_there_twice_is_copied_once():
    flow = overlaid(lambda emit, a, b: concat(emit, a, b, a))
    (copy,) = gathers(flow)
    assert copy.result.shape[1] == 32
    assert sorted(overlays(flow)[0]) == [0, 2, 3]


def test_two_concatenations_of_one_part_cannot_both_have_it():
    flow = overlaid(lambda emit, a, b: [concat(emit, a, b), concat(emit, b, a)])
    assert len(overlays(flow)) == 2
    assert [copy.result.shape[1] for copy in gathers(flow)] == [16]


def test_a_part_never_overlaps_what_another_kernel_writes():
    """The slice lies inside `a`, so nothing else fits beside it."""

    def body(emit, a, b):
        return [concat(emit, part(emit, a, 0, 16), b), a]

    flow = overlaid(body)
    assert [copy.result.shape[1] for copy in gathers(flow)] == [16]
    assert overlays(flow) == [[0], [0, 1]]


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, a, b: concat(emit, conv(emit, b, 20), a),
        lambda emit, a, b: part(emit, a, 8, 24),
        lambda emit, a, b: concat(emit, a, b, scale=0.07),
    ],
    ids=["inside_a_block", "slice_of_half_blocks", "all_rescaled"],
)
def test_what_has_to_move_is_gathered(body):
    flow = overlaid(body)
    assert overlays(flow) == []
    assert len(gathers(flow)) == 1


def test_the_last_part_may_end_inside_a_block():
    flow = overlaid(lambda emit, a, b: concat(emit, a, conv(emit, b, 20)))
    assert overlays(flow) == [[0, 2]]


def test_images_of_a_batch_are_not_ranges():
    flow = overlaid(lambda emit, a, b: concat(emit, a, b), batch=2)
    assert overlays(flow) == []
    assert len(gathers(flow)) == 1


def test_inputs_and_outputs_keep_their_own_memory():
    def network(emit, x):
        a = emit(op.nn.relu(x))
        c = emit(op.concat([a, x], axis=1))
        return [emit(op.nn.max_pool2d(c, (3, 3), padding=(1, 1)), "pool"), c]

    mod = AssignLayouts()(ordered(module(network, x=(1, 16, 5, 3))))
    after = Dataflow(transformed(OverlayChannels(), mod))
    for binding in after.bindings:
        if is_overlay(binding.value):
            assert not after.is_output(binding.var)
            assert all(is_kernel(after.value(expr)) for expr in binding.value.args)


def test_nothing_to_do_changes_nothing():
    before = AssignLayouts()(ordered(module(lambda emit, x: conv(emit, qdq(emit, x), 16), x=(1, 20, 5, 3))))
    tvm.ir.assert_structural_equal(OverlayChannels()(before), before)
    assert all(inputs_of(b.value) for b in Dataflow(before).bindings if is_kernel(b.value))

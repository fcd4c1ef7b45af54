"""SubPixelConvolution: few channels of a transposed convolution become channels of a convolution."""

import pytest
from tvm import relax

from tests.passes.pass_testing import assert_same_numbers, call_named, const, module, ops, transformed
from tvm_int8.passes.expressions import shape_of
from tvm_int8.passes.sub_pixel_convolution import SubPixelConvolution

op = relax.op
SHUFFLE = ["reshape", "permute_dims", "reshape"]


def transposed(channels: int, kernel: int, stride: int, pad: int, extra: int, bias: bool = False, **attrs):
    weight = const(5, channels, kernel, kernel)

    def body(emit, x):
        y = emit(
            op.nn.conv2d_transpose(
                x, weight, strides=(stride,) * 2, padding=(pad,) * 4, output_padding=(extra,) * 2, **attrs
            )
        )
        return emit(op.add(y, const(1, channels, 1, 1))) if bias else y

    return module(body, x=(2, 5, 6, 7))


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pad", "extra"),
    [(1, 9, 3, 4, 2), (1, 9, 2, 4, 1), (3, 4, 2, 1, 0), (2, 2, 2, 0, 0), (1, 8, 4, 2, 0), (4, 3, 2, 1, 1)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_pixels_become_channels(channels, kernel, stride, pad, extra, bias):
    before = transposed(channels, kernel, stride, pad, extra, bias)
    after = transformed(SubPixelConvolution(), before)
    assert ops(after) == ["nn.conv2d", *["add"] * bias, *SHUFFLE]
    assert shape_of(call_named(after, "nn.conv2d"))[1] == channels * stride**2
    assert_same_numbers(before, after)
    assert ops(transformed(SubPixelConvolution(), after)) == ops(after)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pad", "extra"),
    [
        (8, 2, 2, 0, 0),  # fills the lanes by itself
        (1, 3, 1, 1, 0),  # a convolution already
        (1, 3, 2, 1, 0),  # an output of 11 x 13
    ],
)
def test_others_stay(channels, kernel, stride, pad, extra):
    assert ops(transformed(SubPixelConvolution(), transposed(channels, kernel, stride, pad, extra))) == [
        "nn.conv2d_transpose"
    ]


def test_a_sum_somebody_else_reads_stays_behind():
    """The convolution's own result is an output too: the bias is not folded into it."""

    def body(emit, x):
        y = emit(op.nn.conv2d_transpose(x, const(5, 1, 2, 2), strides=(2, 2)))
        return [y, emit(op.add(y, const(1, 1, 1, 1)))]

    before = module(body, x=(1, 5, 4, 4))
    after = transformed(SubPixelConvolution(), before)
    assert ops(after) == ["nn.conv2d", *SHUFFLE, "add"]
    assert_same_numbers(before, after)

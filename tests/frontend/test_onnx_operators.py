"""Every operator a convolutional network is exported with, against ONNX Runtime."""

import numpy as np
import pytest

from tests.frontend.running import check, graph, node, one_node, op_counts, random_feeds

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape):
    return RNG.uniform(0.5, 1.5, size=shape).astype(np.float32)


def ints(*values):
    return np.asarray(values, np.int64)


def floats(*values):
    return np.asarray(values, np.float32)


IMAGE = (1, 4, 9, 8)
SIGNAL = (2, 4, 15)

CONVOLUTIONS = {
    "same_upper": ("Conv", IMAGE, [normal(6, 4, 3, 3)], dict(auto_pad="SAME_UPPER", strides=[2, 2])),
    "same_lower": ("Conv", IMAGE, [normal(6, 4, 4, 2), normal(6)], dict(auto_pad="SAME_LOWER", strides=[2, 3])),
    "valid": ("Conv", IMAGE, [normal(6, 4, 3, 3)], dict(auto_pad="VALID", dilations=[2, 2])),
    "asymmetric_pads": ("Conv", IMAGE, [normal(6, 4, 3, 3), normal(6)], dict(pads=[0, 1, 2, 3])),
    "depthwise": ("Conv", IMAGE, [normal(8, 1, 3, 3), normal(8)], dict(group=4, pads=[1, 1, 1, 1])),
    "one_dimension": ("Conv", SIGNAL, [normal(5, 4, 3), normal(5)], dict(pads=[1, 2], strides=[2], dilations=[2])),
    "one_dimension_auto_pad": ("Conv", SIGNAL, [normal(4, 2, 4)], dict(group=2, auto_pad="SAME_UPPER", strides=[2])),
    "three_dimensions": ("Conv", (1, 2, 4, 5, 5), [normal(3, 2, 2, 3, 3), normal(3)], dict(pads=[0, 1, 1, 1, 1, 1])),
    "transposed": ("ConvTranspose", IMAGE, [normal(4, 3, 3, 3), normal(3)], dict(strides=[2, 2], pads=[1, 1, 1, 1])),
    "transposed_output_padding": (
        *("ConvTranspose", IMAGE, [normal(4, 3, 3, 3)]),
        dict(strides=[2, 2], output_padding=[1, 1], pads=[1, 0, 0, 1]),
    ),
    "transposed_output_shape": (
        *("ConvTranspose", IMAGE, [normal(4, 3, 3, 3)]),
        dict(strides=[2, 2], output_shape=[18, 17]),
    ),
    "transposed_same_upper": (
        *("ConvTranspose", IMAGE, [normal(4, 3, 3, 4)]),
        dict(strides=[2, 2], auto_pad="SAME_UPPER"),
    ),
    "transposed_same_lower": (
        *("ConvTranspose", IMAGE, [normal(4, 3, 3, 4)]),
        dict(strides=[2, 3], auto_pad="SAME_LOWER"),
    ),
    "transposed_groups": ("ConvTranspose", IMAGE, [normal(4, 3, 2, 2), normal(6)], dict(group=2, strides=[2, 2])),
    "transposed_dilation": ("ConvTranspose", IMAGE, [normal(4, 3, 3, 3)], dict(dilations=[2, 2])),
    "transposed_one_dimension": ("ConvTranspose", SIGNAL, [normal(4, 3, 4), normal(3)], dict(strides=[2], pads=[1, 1])),
    "gemm": ("Gemm", (2, 5), [normal(3, 5), normal(3)], dict(transB=1, alpha=0.5, beta=2.0)),
    "gemm_trans_a": ("Gemm", (5, 2), [normal(5, 3), normal(1, 3)], dict(transA=1)),
    "gemm_no_bias": ("Gemm", (2, 5), [normal(5, 3)], dict(alpha=2.0)),
    "matmul": ("MatMul", (2, 3, 5), [normal(5, 4)], {}),
}

POOLS = {
    "max": ("MaxPool", IMAGE, [], dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1])),
    "max_ceil": ("MaxPool", IMAGE, [], dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "max_ceil_dropped_window": ("MaxPool", (1, 2, 6, 6), [], dict(kernel_shape=[1, 1], strides=[4, 4], ceil_mode=1)),
    "max_same_lower": ("MaxPool", IMAGE, [], dict(kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER")),
    "max_dilated": ("MaxPool", IMAGE, [], dict(kernel_shape=[2, 3], dilations=[2, 2])),
    "max_one_dimension": ("MaxPool", SIGNAL, [], dict(kernel_shape=[3], strides=[2], pads=[1, 1])),
    "max_three_dimensions": ("MaxPool", (1, 2, 4, 5, 6), [], dict(kernel_shape=[2, 2, 3], strides=[1, 2, 2])),
    "average": ("AveragePool", IMAGE, [], dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "average_include_pad": (
        *("AveragePool", IMAGE, []),
        dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    ),
    "average_ceil": ("AveragePool", IMAGE, [], dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "average_same_upper": (
        *("AveragePool", IMAGE, []),
        dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    ),
    "average_one_dimension": ("AveragePool", SIGNAL, [], dict(kernel_shape=[3], strides=[2], pads=[1, 0])),
    "average_whole": ("AveragePool", IMAGE, [], dict(kernel_shape=[9, 8])),
    "global_average": ("GlobalAveragePool", IMAGE, [], {}),
    "global_average_one_dimension": ("GlobalAveragePool", SIGNAL, [], {}),
    "global_max": ("GlobalMaxPool", IMAGE, [], {}),
    "global_max_one_dimension": ("GlobalMaxPool", SIGNAL, [], {}),
}

ACTIVATIONS = {
    "relu": ("Relu", IMAGE, [], {}),
    "leaky_relu": ("LeakyRelu", IMAGE, [], dict(alpha=0.2)),
    "elu": ("Elu", IMAGE, [], dict(alpha=1.5)),
    "celu": ("Celu", IMAGE, [], dict(alpha=0.7)),
    "selu": ("Selu", IMAGE, [], {}),
    "selu_given": ("Selu", IMAGE, [], dict(alpha=1.2, gamma=0.9)),
    "sigmoid": ("Sigmoid", IMAGE, [], {}),
    "tanh": ("Tanh", IMAGE, [], {}),
    "hard_sigmoid": ("HardSigmoid", IMAGE, [], dict(alpha=0.3)),
    "hard_swish": ("HardSwish", IMAGE, [], {}),
    "softplus": ("Softplus", IMAGE, [], {}),
    "softsign": ("Softsign", IMAGE, [], {}),
    "thresholded_relu": ("ThresholdedRelu", IMAGE, [], dict(alpha=0.5)),
    "prelu_channels": ("PRelu", IMAGE, [normal(4, 1, 1)], {}),
    "prelu_one": ("PRelu", IMAGE, [floats(0.3)], {}),
    "prelu_full": ("PRelu", IMAGE, [normal(4, 9, 8)], {}),
    "clip": ("Clip", IMAGE, [np.float32(-0.3), np.float32(0.6)], {}),
    "clip_low": ("Clip", IMAGE, [np.float32(0.1)], {}),
    "clip_high": ("Clip", IMAGE, [None, np.float32(0.1)], {}),
    "softmax": ("Softmax", IMAGE, [], dict(axis=1)),
    "softmax_default": ("Softmax", IMAGE, [], {}),
    "log_softmax": ("LogSoftmax", IMAGE, [], dict(axis=-3)),
    "erf": ("Erf", IMAGE, [], {}),
    "reciprocal": ("Reciprocal", IMAGE, [], {}),
}

NORMALIZATIONS = {
    "batch": ("BatchNormalization", IMAGE, [normal(4), normal(4), normal(4), positive(4)], dict(epsilon=1e-3)),
    "batch_vector": ("BatchNormalization", (3, 4), [normal(4), normal(4), normal(4), positive(4)], {}),
    "batch_signal": ("BatchNormalization", SIGNAL, [normal(4), normal(4), normal(4), positive(4)], {}),
    "instance": ("InstanceNormalization", IMAGE, [normal(4), normal(4)], {}),
    "layer": ("LayerNormalization", IMAGE, [normal(9, 8), normal(9, 8)], dict(axis=2)),
    "lrn": ("LRN", (1, 7, 4, 5), [], dict(size=5, alpha=0.3, beta=0.75, bias=1.5)),
    "mean_variance": ("MeanVarianceNormalization", IMAGE, [], {}),
    "lp": ("LpNormalization", IMAGE, [], dict(axis=1, p=2)),
    "lp_one": ("LpNormalization", IMAGE, [], dict(axis=1, p=1)),
}

SHAPES = {
    "flatten": ("Flatten", IMAGE, [], dict(axis=2)),
    "flatten_negative": ("Flatten", IMAGE, [], dict(axis=-1)),
    "reshape": ("Reshape", IMAGE, [ints(0, 2, -1)], {}),
    "squeeze": ("Squeeze", (1, 4, 1, 5), [ints(0, -2)], {}),
    "squeeze_all": ("Squeeze", (1, 4, 1, 5), [], {}),
    "unsqueeze": ("Unsqueeze", (4, 5), [ints(0, 3)], {}),
    "transpose": ("Transpose", IMAGE, [], dict(perm=[0, 2, 3, 1])),
    "transpose_default": ("Transpose", (2, 3, 4), [], {}),
    "slice": ("Slice", IMAGE, [ints(1, -6), ints(9, 1000), ints(2, 3), ints(2, 1)], {}),
    "slice_backwards": ("Slice", IMAGE, [ints(-1, 1), ints(-1000, 3), ints(3, 1), ints(-2, 1)], {}),
    "pad_constant": ("Pad", IMAGE, [ints(0, 1, 1, 2, 0, 0, 1, 0), np.float32(0.7)], {}),
    "pad_reflect": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 0)], dict(mode="reflect")),
    "pad_edge": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 0)], dict(mode="edge")),
    "pad_negative": ("Pad", IMAGE, [ints(0, 0, -1, 2, 0, 0, 2, -3)], {}),
    "expand": ("Expand", (1, 4, 1, 5), [ints(2, 1, 3, 1)], {}),
    "tile": ("Tile", (1, 4, 2, 5), [ints(1, 2, 1, 3)], {}),
    "gather_scalar": ("Gather", IMAGE, [np.int64(-2)], dict(axis=2)),
    "gather_range": ("Gather", IMAGE, [ints(2, 3, 4)], dict(axis=2)),
    "gather_any": ("Gather", IMAGE, [np.asarray([[3, 0], [-1, 1]])], dict(axis=1)),
    "depth_to_space": ("DepthToSpace", (1, 8, 3, 4), [], dict(blocksize=2)),
    "depth_to_space_crd": ("DepthToSpace", (1, 8, 3, 4), [], dict(blocksize=2, mode="CRD")),
    "space_to_depth": ("SpaceToDepth", (1, 2, 4, 6), [], dict(blocksize=2)),
    "reduce_mean_image": ("ReduceMean", IMAGE, [], dict(axes=[-1, -2], keepdims=0)),
    "reduce_mean_kept": ("ReduceMean", IMAGE, [], dict(axes=[2, 3])),
    "reduce_mean_channel": ("ReduceMean", IMAGE, [], dict(axes=[1])),
    "reduce_sum": ("ReduceSum", IMAGE, [ints(1, 2)], dict(keepdims=0)),
    "reduce_max": ("ReduceMax", IMAGE, [], dict(axes=[3])),
    "reduce_l2": ("ReduceL2", IMAGE, [], dict(axes=[1])),
    "reduce_l1": ("ReduceL1", IMAGE, [], dict(axes=[1], keepdims=0)),
    "reduce_log_sum_exp": ("ReduceLogSumExp", IMAGE, [], dict(axes=[2, 3], keepdims=0)),
    "reduce_all": ("ReduceMin", IMAGE, [], dict(keepdims=0)),
    "power": ("Pow", IMAGE, [np.float32(2.0)], {}),
    "divide": ("Div", IMAGE, [positive(4, 1, 1)], {}),
}

ALL = {**CONVOLUTIONS, **POOLS, **ACTIVATIONS, **NORMALIZATIONS, **SHAPES}


@pytest.mark.parametrize("name", ALL)
def test_matches_onnx_runtime(name):
    op_type, shape, constants, attributes = ALL[name]
    check(one_node(op_type, shape, *constants, **attributes), scale=2.0 if op_type.startswith("Hard") else 1.0)


OLD_OPSETS = {
    "clip_attributes": ("Clip", IMAGE, [], dict(min=-0.2, max=0.5), 9),
    "clip_relu": ("Clip", IMAGE, [], dict(min=0.0), 6),
    "pad_attributes": ("Pad", IMAGE, [], dict(pads=[0, 0, 1, 1, 0, 0, 2, 0], value=0.5), 9),
    "slice_attributes": ("Slice", IMAGE, [], dict(axes=[1, 3], starts=[1, -3], ends=[3, 1000]), 9),
    "softmax_flattens": ("Softmax", (2, 3, 4), [], dict(axis=1), 11),
    "softmax_default": ("Softmax", (2, 3, 4), [], {}, 9),
    "log_softmax_flattens": ("LogSoftmax", (2, 3, 4), [], dict(axis=0), 11),
    "batch_norm_spatial": ("BatchNormalization", IMAGE, [normal(4), normal(4), normal(4), positive(4)], {}, 7),
    "upsample_7": ("Upsample", (1, 2, 3, 4), [], dict(scales=[1.0, 1.0, 2.0, 3.0]), 7),
    "upsample_9": ("Upsample", (1, 2, 3, 4), [floats(1, 1, 2, 2)], {}, 9),
    "upsample_linear": ("Upsample", (1, 2, 3, 4), [floats(1, 1, 2, 2)], dict(mode="linear"), 9),
    "resize_10": ("Resize", (1, 2, 6, 5), [floats(1, 1, 0.5, 2)], {}, 10),
    "squeeze_attributes": ("Squeeze", (1, 4, 1, 5), [], dict(axes=[0, 2]), 11),
    "unsqueeze_attributes": ("Unsqueeze", (4, 5), [], dict(axes=[0, -1]), 11),
    "reduce_sum_attributes": ("ReduceSum", IMAGE, [], dict(axes=[1], keepdims=0), 11),
    "dropout_7": ("Dropout", IMAGE, [], {}, 7),
    "average_pool_7": ("AveragePool", IMAGE, [], dict(kernel_shape=[2, 2]), 7),
    "gemm_7": ("Gemm", (2, 5), [normal(5, 3), normal(3)], {}, 7),
    "mean_18": ("ReduceMean", IMAGE, [ints(2, 3)], dict(keepdims=0), 18),
    "average_dilated_19": ("AveragePool", IMAGE, [], dict(kernel_shape=[2, 2], dilations=[2, 2]), 19),
    "average_ceil_include_pad_19": (
        *("AveragePool", (1, 1, 6, 6), []),
        dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1, ceil_mode=1),
        19,
    ),
    "pad_axes_18": ("Pad", IMAGE, [ints(1, 2, 0, 1), None, ints(2, 3)], {}, 18),
    "gelu_20": ("Gelu", IMAGE, [], {}, 20),
    "gelu_tanh_20": ("Gelu", IMAGE, [], dict(approximate="tanh"), 20),
    "mish_18": ("Mish", IMAGE, [], {}, 18),
    "group_norm_21": ("GroupNormalization", IMAGE, [normal(4), normal(4)], dict(num_groups=2), 21),
}


@pytest.mark.parametrize("name", OLD_OPSETS)
def test_matches_onnx_runtime_at_opset(name):
    op_type, shape, constants, attributes, opset = OLD_OPSETS[name]
    check(one_node(op_type, shape, *constants, opset=opset, **attributes))


RESIZE = {
    "nearest_double": ([2.0, 2.0], dict(coordinate_transformation_mode="asymmetric", nearest_mode="floor")),
    "nearest_default": ([2.0, 3.0], {}),
    "nearest_shrink": ([0.5, 0.6], dict(nearest_mode="round_prefer_ceil")),
    "nearest_ceil": ([1.7, 2.0], dict(nearest_mode="ceil", coordinate_transformation_mode="half_pixel")),
    "nearest_align": ([2.0, 2.0], dict(coordinate_transformation_mode="align_corners")),
    "linear_half_pixel": ([2.0, 3.0], dict(mode="linear")),
    "linear_align": ([2.0, 2.0], dict(mode="linear", coordinate_transformation_mode="align_corners")),
    "linear_asymmetric": ([2.0, 2.0], dict(mode="linear", coordinate_transformation_mode="asymmetric")),
    "linear_pytorch": ([2.0, 2.0], dict(mode="linear", coordinate_transformation_mode="pytorch_half_pixel")),
    "linear_scale_that_does_not_divide": ([1.3, 0.7], dict(mode="linear")),
    "linear_shrink": ([0.4, 0.4], dict(mode="linear", coordinate_transformation_mode="align_corners")),
    "cubic": ([2.0, 2.0], dict(mode="cubic")),
    "cubic_exclude_outside": ([1.5, 2.0], dict(mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)),
}


@pytest.mark.parametrize("name", RESIZE)
def test_resize(name):
    scales, attributes = RESIZE[name]
    check(one_node("Resize", (1, 2, 6, 5), None, floats(1, 1, *scales), opset=13, **attributes))


def test_resize_to_sizes_is_one_operator():
    module = check(one_node("Resize", (1, 2, 6, 5), None, None, ints(1, 2, 12, 10), opset=13, mode="linear"))
    assert op_counts(module) == {"image.resize2d": 1}


def test_resize_by_whole_factors_is_asymmetric_and_rounds_down():
    module = check(one_node("Resize", (1, 2, 6, 5), None, floats(1, 1, 2, 2), opset=13))
    attrs = module["main"].body.blocks[0].bindings[0].value.attrs
    assert (attrs.coordinate_transformation_mode, attrs.rounding_method) == ("asymmetric", "floor")


@pytest.mark.parametrize(("shape", "scales"), [((1, 2, 6), (1, 1, 2)), ((1, 2, 3, 4, 2), (1, 1, 2, 2, 2))])
def test_resize_of_other_ranks(shape, scales):
    check(one_node("Resize", shape, None, floats(*scales), opset=13, mode="linear"))
    check(one_node("Resize", shape, None, floats(*scales), opset=13))


def test_resize_crops_and_extrapolates():
    check(
        one_node(
            *("Resize", (1, 2, 6, 5), floats(0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2), None, ints(1, 2, 4, 7)),
            opset=13,
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=3.5,
        )
    )


def test_resize_with_aspect_ratio_and_axes():
    check(
        one_node(
            *("Resize", (1, 2, 6, 8), None, None, ints(9, 8)),
            opset=18,
            axes=[2, 3],
            keep_aspect_ratio_policy="not_larger",
        )
    )


@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_n_ary(op_type, count):
    names = [f"x{index}" for index in range(count)]
    model = graph([node(op_type, " ".join(names))], dict.fromkeys(names, (2, 3)))
    module = check(model)
    assert not any("stack" in name for name in op_counts(module))


def test_sum_of_two_is_one_add():
    model = graph([node("Sum", "a b", name="residual")], {"a": (1, 2, 3, 3), "b": (1, 2, 3, 3)})
    module = check(model)
    assert op_counts(module) == {"add": 1}
    assert dict(module["main"].attrs["layer_names"]) == {"residual": "residual"}


@pytest.mark.parametrize(
    ("opset", "weights", "inputs", "attributes"),
    [
        (11, {}, "x", dict(split=[1, 3])),
        (17, {"s": ints(1, 3)}, "x s", {}),
        (18, {}, "x", dict(num_outputs=2)),
        (17, {}, "x", {}),
    ],
)
def test_split(opset, weights, inputs, attributes):
    made = node("Split", inputs, "y z", axis=1, **attributes)
    check(graph([made], {"x": (1, 4, 3, 3)}, weights, ["y", "z"], opset))


def test_where_and_comparison():
    nodes = [node("Greater", "x t", "c", "greater"), node("Where", "c x t", "y", "where")]
    check(graph(nodes, {"x": (2, 3)}, {"t": floats(0.1)}))


def test_gather_by_an_input():
    feeds = {"x": normal(5, 3), "i": ints(0, 4, -1, 2)}
    check(graph([node("Gather", "x i", axis=0)], {"x": (5, 3), "i": feeds["i"]}), feeds)


def test_lrn_of_even_size():
    """The specification's sum; ONNX Runtime refuses even sizes and ONNX's reference gets them wrong."""
    model = one_node("LRN", (1, 7, 4, 5), size=4, alpha=0.3)
    feeds = random_feeds(model)
    x = feeds["x"]
    sums = np.stack([(x[:, max(0, c - 1) : c + 3] ** 2).sum(1) for c in range(7)], axis=1)
    check(model, feeds, reference=[x / (1 + 0.3 / 4 * sums) ** 0.75])


def test_argmax():
    check(graph([node("ArgMax", axis=1)], {"x": IMAGE}, outputs={"y": np.int64}))


def test_operator_without_handler_goes_through_its_onnx_function():
    check(one_node("Shrink", IMAGE, lambd=0.4, bias=0.1))


def test_fused_convolution_of_onnx_runtime():
    weight = normal(3, 4, 3, 3)
    made = node("FusedConv", "x w", domain="com.microsoft", activation="LeakyRelu", activation_params=[0.2])
    check(graph([made], {"x": IMAGE}, {"w": weight}))

"""ONNX's own test cases of single operators, compiled and run: the operators of convolutional networks.

Everything goes through whole compilation in FP32, so ranks and types that no network of images has meet the passes and
schedules, too. What has to be known before run time (axes, sizes, statistics) and is an input in a case is a constant
here.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import pytest

import tvm_int8
from tvm_int8.errors import ModelError

OPERATORS = [
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Ceil", "Celu", "Clip", "Concat", "Conv",
    "ConvTranspose", "DepthToSpace", "Div", "Elu", "Equal", "Erf", "Exp", "Flatten", "Floor", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "InstanceNormalization",
    "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "LogSoftmax", "LpNormalization", "MatMul", "Max",
    "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "QLinearConv",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "Reciprocal", "Relu", "Reshape", "Resize",
    "RMSNormalization", "Round", "Selu", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Upsample", "Where",
]  # fmt: skip
REFUSED = (
    "is in training mode",
    "has 3 spatial axes",
    "has dtype string",
    "output 'z' is used",  # indices of MaxPool
    "is symbolic",  # written so for dimensions of 0
    "has no elements",
    "shrinks with antialias=1",
    "uint64",  # TopK
)
"""Reasons not to compile a case."""
UNLIKE_ONNX_RUNTIME = [f"test_resize_downsample_scales_{mode}_align_corners" for mode in ("linear", "cubic")]
"""Cases that ONNX Runtime reads differently, as this frontend does: corners of whole pixels are aligned."""
NOT_FLOAT32 = ("bfloat16",)
"""Types of inputs that NumPy does not have: a caller converts them."""


@functools.cache
def cases() -> dict[str, list]:
    """By operator: cases of one node of it."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        every = collect_testcases(None)
    found: dict[str, list] = {}
    for case in every:
        operators = [node.op_type for node in case.model.graph.node]
        unusual = case.name in UNLIKE_ONNX_RUNTIME or any(name in case.name for name in NOT_FLOAT32)
        if len(operators) == 1 and not unusual:
            found.setdefault(operators[0], []).append(case)
    return found


def compiled(model: onnx.ModelProto, inputs: list) -> tvm_int8.CompiledModule:
    """The model in FP32, with all inputs but the first as constants if it cannot be compiled otherwise."""
    options = {"quantization": None, "num_threads": 1, "progress": False}
    try:
        return tvm_int8.compile(model, **options)
    except ModelError:
        bound = onnx.ModelProto()
        bound.CopyFrom(model)
        for value, x in list(zip(model.graph.input, inputs, strict=True))[1:]:
            bound.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(x), value.name))
        del bound.graph.input[1:]
        return tvm_int8.compile(bound, **options)


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(operator):
    refused = {}
    for case in cases()[operator]:
        ((inputs, outputs),) = case.data_sets
        try:
            module = compiled(case.model, inputs)
        except ModelError as error:
            refused[case.name] = str(error)
            continue
        named = {value.name: np.asarray(x) for value, x in zip(case.model.graph.input, inputs, strict=True)}
        found = module.run({info.name: named[info.name] for info in module.inputs})
        for value, expected in zip(case.model.graph.output, outputs, strict=True):
            assert found[value.name].shape == np.shape(expected), case.name
            np.testing.assert_allclose(
                found[value.name].astype(np.float64), np.asarray(expected, np.float64), 1e-3, 1e-5, err_msg=case.name
            )
    assert {name: text for name, text in refused.items() if not any(reason in text for reason in REFUSED)} == {}
    assert len(refused) < len(cases()[operator])


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "name", "reason"), [
    ("RoiAlign", "test_roialign_mode_max", "has mode 'max'"),
    ("SplitToSequence", "test_split_to_sequence_nokeepdims", "has keepdims 0"),
    ("TopK", "test_top_k_uint64", "sorts uint64"),
    ("Slice", "test_slice_start_out_of_bounds", "has no elements"),
])  # fmt: skip
def test_what_would_be_wrong_is_refused(operator, name, reason):
    (case,) = (case for case in cases()[operator] if case.name == name)
    with pytest.raises(ModelError, match=reason):
        compiled(case.model, case.data_sets[0][0])


@pytest.mark.slow
def test_cases_are_those_of_the_installed_onnx():
    assert set(OPERATORS) <= set(cases())

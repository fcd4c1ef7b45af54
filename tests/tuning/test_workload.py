import json
from dataclasses import replace

import pytest

from tests.schedules.winograd_testing import winograd_spec
from tvm_int8.specs import Conv2d, Elementwise, Operand, Output, Pool2d, Program, Tensor
from tvm_int8.tuning.workload import OPS, Workload


def conv(data, out, kernel=(1, 1), block=16, dtypes=("uint8", "uint8"), **sizes):
    acc = Operand("acc", "int32" if dtypes[0] == "uint8" else "float32")
    tensors = (Tensor(data, dtypes[0], block),), Tensor(out, dtypes[1])
    return Conv2d("layer", *tensors, Program((acc,)), Output(dtypes[1]), kernel=kernel, **sizes)


SPECS = {
    "conv2d 1x64x14x14 * 32x64x3x3 pad 1,1,1,1 u8->u8 2t": conv(
        (1, 64, 14, 14), (1, 32, 14, 14), (3, 3), padding=(1, 1, 1, 1)
    ),
    "conv2d 2x3x32x30 * 16x3x7x5 /2x1 pad 3,2,3,2 u8->u8 2t": conv(
        (2, 3, 32, 30), (2, 16, 16, 30), (7, 5), block=4, strides=(2, 1), padding=(3, 2, 3, 2)
    ),
    "conv2d 1x8x9x9 * 20x2x3x3 dilation 2x2 groups 4 u8->f32 2t": conv(
        (1, 8, 9, 9), (1, 20, 5, 5), (3, 3), dtypes=("uint8", "float32"), dilation=(2, 2), groups=4
    ),
    "conv2d 1x8x9x9 * 16x1x1x1 groups 8 u8->u8 2t": conv((1, 8, 9, 9), (1, 16, 9, 9), groups=8),
    "winograd_conv2d_4x2w3 1x64x14x14 * 32x64x3x3 pad 1,1,1,1 u8->u8 2t": winograd_spec(
        c=64, o=32, hw=(14, 14), tile=(4, 2), wide=(1, 2, 5)
    ),
    "winograd_conv2d_2x2 1x64x14x14 * 32x64x3x3 f32->f32 2t": winograd_spec(
        c=64, o=32, hw=(14, 14), tile=(2, 2), dtype="float32", output=Output("float32"), padding=(0, 0, 0, 0)
    ),
    "depthwise_conv2d 1x24x7x9 * 24x1x3x3 pad 1,1,1,1 u8->u8 2t": conv(
        (1, 24, 7, 9), (1, 24, 7, 9), (3, 3), padding=(1, 1, 1, 1), groups=24
    ),
    "depthwise_conv2d 1x24x1x1 * 24x1x1x1 u8->u8 2t": conv((1, 24, 1, 1), (1, 24, 1, 1), groups=24),
    "conv2d_transpose 1x17x5x6 * 17x6x2x2 /2x2 f32->f32 2t": conv(
        (1, 17, 5, 6), (1, 6, 10, 12), (2, 2), dtypes=("float32", "float32"), strides=(2, 2), transposed=True
    ),
    "conv2d_transpose 1x12x4x4 * 12x3x2x2 /2x2 groups 6 u8->u8 2t": conv(
        (1, 12, 4, 4), (1, 18, 8, 8), (2, 2), strides=(2, 2), groups=6, transposed=True
    ),
    "dense 8x512x1x1 * 1000x512x1x1 u8->f32 2t": conv(
        (8, 512, 1, 1), (8, 1000, 1, 1), dtypes=("uint8", "float32")
    ),
}  # fmt: skip

WORKLOADS = [Workload.of(spec, 2) for spec in SPECS.values()]
CONV, IMAGE, GROUPED = WORKLOADS[:3]
TILED, DEPTHWISE, TRANSPOSED, DENSE = WORKLOADS[4], WORKLOADS[6], WORKLOADS[8], WORKLOADS[10]


@pytest.mark.parametrize("text", SPECS)
def test_text_says_what_distinguishes_it(text):
    workload = Workload.of(SPECS[text], 2)
    assert str(workload) == text
    assert text.startswith(workload.op)


def test_all_kinds_are_here():
    assert {workload.op for workload in WORKLOADS} == set(OPS)
    assert len(set(WORKLOADS)) == len(WORKLOADS)


def test_fields_are_those_of_the_spec():
    spec = SPECS[str(IMAGE)]
    assert (IMAGE.data, IMAGE.out, IMAGE.block) == (spec.inputs[0].shape, spec.result.shape, 4)
    for name in ("kernel", "strides", "padding", "dilation", "groups"):
        assert getattr(IMAGE, name) == getattr(spec, name)
    assert IMAGE.dtypes == ("uint8", "int8", "uint8")
    assert TRANSPOSED.dtypes == ("float32", "float32", "float32")
    assert Workload.of(spec, 7).threads == 7


def test_weight_is_transposed_with_the_convolution():
    assert GROUPED.weight == (20, 2, 3, 3)
    assert DEPTHWISE.weight == (24, 1, 3, 3)
    assert TRANSPOSED.weight == (17, 6, 2, 2)


def test_kernels_without_knobs_are_no_workloads():
    tensor = Tensor((1, 16, 4, 4), "uint8")
    for kind in (Pool2d, Elementwise):
        assert Workload.of(kind("layer", (tensor,), tensor, Program(()), Output("uint8")), 1) is None


def test_layer_and_epilogue_do_not_count():
    spec = SPECS[str(CONV)]
    residual = Program(
        (Operand("acc", "int32"), Operand("tensor", "uint8", 7)), (("add", "%0", "%1"), ("max", "%2", 0))
    )
    fused = replace(
        spec, layer="other", inputs=(*spec.inputs, spec.result), program=residual, output=Output("uint8", 3, 0, 99),
        pad_value=None,
    )  # fmt: skip
    assert Workload.of(fused, 2) == CONV


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_spec_round_trip(workload):
    spec = workload.spec()
    assert Workload.of(spec, workload.threads) == workload
    assert spec.macs == SPECS[str(workload)].macs
    assert spec.output.dtype == spec.result.dtype == workload.dtypes[2]


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_json_round_trip(workload):
    read = Workload.from_dict(json.loads(json.dumps(workload.to_dict())))
    assert read == workload
    assert hash(read) == hash(workload)


def test_written_form_is_the_one_in_logs():
    assert CONV.to_dict() == {
        "op": "conv2d",
        "data": [1, 64, 14, 14],
        "out": [1, 32, 14, 14],
        "kernel": [3, 3],
        "strides": [1, 1],
        "padding": [1, 1, 1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "block": 16,
        "dtypes": ["uint8", "int8", "uint8"],
        "threads": 2,
    }


def test_written_form_of_tiles():
    direct = replace(CONV, threads=2).to_dict()
    assert TILED.to_dict() == {**direct, "op": "winograd_conv2d", "tile": [4, 2], "wide": 3}
    for name, value in (("tile", [3, 2]), ("tile", [4]), ("tile", "4x4"), ("wide", -1), ("wide", None)):
        with pytest.raises(ValueError, match=f"workload's {name} is"):
            Workload.from_dict({**TILED.to_dict(), name: value})
    with pytest.raises(ValueError, match="missing or unknown: wide"):
        Workload.from_dict({name: value for name, value in TILED.to_dict().items() if name != "wide"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", [1, 64, 14], r"data is \[1, 64, 14\], expected 4 counts"),
        ("data", [1, 64, 14, 0], "data is .*expected 4 counts"),
        ("data", "1x64x14x14", "data is '1x64x14x14', expected 4 counts"),
        ("out", [1, 32, 14, 14.0], "out is .*expected 4 counts"),
        ("out", [1, 32, 14, True], "out is .*expected 4 counts"),
        ("out", [[1], 32, 14, 14], "out is .*expected 4 counts"),
        ("kernel", 3, "kernel is 3, expected 2 counts"),
        ("strides", [0, 1], r"strides is \[0, 1\]"),
        ("strides", None, "strides is None"),
        ("padding", [1, 1, 1, -1], r"padding is \[1, 1, 1, -1\], expected 4"),
        ("padding", [1, 1], "padding is"),
        ("dilation", {"y": 1, "x": 1}, "dilation is"),
        ("groups", 0, "groups is 0, expected a count"),
        ("groups", [1], r"groups is \[1\]"),
        ("groups", 3, "does not fit its shapes and groups"),
        ("groups", 128, "does not fit its shapes and groups"),
        ("threads", 1.5, "threads is 1.5"),
        ("threads", True, "threads is True"),
        ("block", "16", "block is '16'"),
        ("block", 8, "block 8"),
        ("dtypes", ["uint8", "int8"], "dtypes are .*expected three: uint8 and int8"),
        ("dtypes", ["uint8", "int8", "int4"], "dtypes are .*expected three"),
        ("dtypes", "uint8", "dtypes are 'uint8', expected three"),
        ("dtypes", [["uint8"], "int8", "uint8"], "dtypes are .*expected three"),
        ("dtypes", ["uint8", "int8", "int8"], "dtypes are .*expected three"),
        ("out", [2, 64, 14, 14], "does not become"),
        ("out", [1, 64, 14, 9], "does not become"),
        ("dtypes", ["int8", "int8", "uint8"], "dtypes are .*int8.*int8.*uint8.*expected three"),
        ("dtypes", ["uint8", "float32", "uint8"], "dtypes are .*float32.*expected three"),
        ("op", "conv3d", "no workload: op 'conv3d'"),
        ("op", None, "no workload: op None"),
        ("op", "dense", "op 'dense' does not fit"),
        ("op", "depthwise_conv2d", "op 'depthwise_conv2d' does not fit"),
    ],
)
def test_bad_fields_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        Workload.from_dict({**CONV.to_dict(), name: value})


def test_an_op_is_not_guessed():
    for workload in (DEPTHWISE, DENSE):
        with pytest.raises(ValueError, match="op 'conv2d' does not fit"):
            Workload.from_dict({**workload.to_dict(), "op": "conv2d"})


def test_missing_and_unknown_fields_are_named():
    fields = CONV.to_dict()
    del fields["kernel"]
    with pytest.raises(ValueError, match=r"missing or unknown: colour, kernel$"):
        Workload.from_dict({**fields, "colour": "red"})
    for found in (None, [], "conv2d", 3):
        with pytest.raises(ValueError, match="a workload is an object"):
            Workload.from_dict(found)

"""The float passes on whole networks: no batch norm or scale survives behind a convolution; outputs stay the same."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tests.passes.pass_testing import assert_same_numbers, assert_unchanged, ops
from tvm_int8.passes.canonicalize import Canonicalize
from tvm_int8.passes.dataflow import Dataflow, Var, const_value, op_name
from tvm_int8.passes.fold_batch_norm import FoldBatchNorm
from tvm_int8.passes.fold_constants import FoldConstants
from tvm_int8.passes.fold_scale_shift import FoldScaleShift

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LAYERS = ("nn.conv2d", "nn.conv2d_transpose", "matmul")


def imported(path: Path) -> tvm.IRModule:
    return from_onnx(onnx.load(path), keep_params_in_input=False)


def folded(mod: tvm.IRModule) -> tvm.IRModule:
    for compiler_pass in (FoldConstants(), Canonicalize(), FoldBatchNorm(), FoldScaleShift()):
        mod = compiler_pass(mod)
    relax.analysis.well_formed(mod)
    return mod


def foldable_leftovers(mod: tvm.IRModule) -> list[str]:
    """Multiplies by a constant that have a layer right in front, and layers followed by two adds of constants."""
    flow, found = Dataflow(mod), []
    for binding in flow.bindings:
        if op_name(binding.value) not in ("multiply", "add") or const_value(binding.value.args[1]) is None:
            continue
        source = flow.value(binding.value.args[0])
        behind_bias = op_name(source) == "add" and const_value(source.args[1]) is not None
        layer = flow.value(source.args[0]) if behind_bias and isinstance(source.args[0], Var) else source
        if op_name(layer) in LAYERS and (behind_bias or op_name(binding.value) == "multiply"):
            found.append(binding.var.name)
    return found


# A network's operators after the passes: convolutions, multiplies, adds.
COUNTS = {
    "densenet121": (121, 62, 122),  # 59 of 121 batch norms follow a convolution; the other 62 follow a concat or a pool
    "inception_v2": (69, 0, 70),
    "resnet50": (53, 0, 53 + 16 + 1),
    "shufflenet": (49, 0, 49 + 13 + 1),
    "squeezenet": (26, 0, 26),
}


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_foldable_is_left(name):
    after = folded(imported(LIGHT / f"light_{name}.onnx"))
    count = Counter(ops(after))
    assert (count["nn.conv2d"], count["multiply"], count["add"]) == COUNTS[name]
    assert foldable_leftovers(after) == []
    gone = {"nn.batch_norm", "TupleGetItem", "nn.dropout", "broadcast_to", "mean", "squeeze", "expand_dims", "stack"}
    assert not gone & set(count)
    assert_unchanged(after, folded(after))


def test_outputs_of_a_trained_network_are_the_same(shared_data):
    before = imported(shared_data / "resnet8_cifar10.onnx")
    after = folded(before)
    assert "nn.batch_norm" not in ops(after)
    assert foldable_leftovers(after) == []
    assert_same_numbers(before, after, tolerance=1e-4)

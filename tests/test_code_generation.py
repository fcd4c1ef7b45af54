"""What is done to functions before LLVM sees them: tensors may begin anywhere in their memory."""

import numpy as np
import pytest
import tvm
import tvm_ffi

from tvm_int8.code_generation import ALIGNMENT, TENSOR_IR
from tvm_int8.schedules.vector import KernelBuilder, T, load, store


def copy_kernel():
    with KernelBuilder("copy") as k:
        source, target = k.arguments(("source", (4, 16), "uint8"), ("target", (4, 16), "uint8"))
        with T.parallel(4) as i:
            store(target, i * 16, load(source, i * 16))
    return tvm.IRModule({"copy": k.func.with_attr("global_symbol", "copy")})


@pytest.mark.parametrize("checked", [False, True], ids=["kernel", "reads_inputs"])
@pytest.mark.parametrize("offset", [0, ALIGNMENT, 7 * ALIGNMENT])
def test_tensors_may_begin_anywhere_in_their_memory(offset, checked):
    mod = copy_kernel()
    if checked:
        mod["copy"] = mod["copy"].with_attr("tvm_int8.reads_inputs", True)
    executable = tvm.compile(mod, tvm.target.Target({"kind": "llvm"}), tir_pipeline=TENSOR_IR)
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    source = tvm.runtime.tensor(np.arange(256, dtype=np.uint8))
    target = tvm.runtime.tensor(np.zeros(256, np.uint8))
    shape = tvm_ffi.Shape((4, 16))
    executable["copy"](view(source, shape, "uint8", 2 * ALIGNMENT), view(target, shape, "uint8", offset))
    expected = np.zeros(256, np.uint8)
    expected[offset : offset + 64] = np.arange(2 * ALIGNMENT, 2 * ALIGNMENT + 64)
    np.testing.assert_array_equal(target.numpy(), expected)

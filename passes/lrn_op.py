"""`tvm_int8.lrn`: local response normalisation across the channels of an NCHW tensor, an operator Relax does not have.

    out = x / (bias + alpha / size * sum of x[c - before .. c - before + size - 1] ** 2) ** beta

`RecognizeLrn` writes it; `OrderKernels` turns every one into a kernel, so it needs no legalisation.
"""

from __future__ import annotations

import tvm
from tvm import relax

from .expressions import Expr

NAME = "tvm_int8.lrn"
LARGEST_REACH = 16  # channels a window may reach to either side: kernels look at neighbouring blocks only


def _register() -> tvm.ir.Op:
    if NAME not in tvm.ir.Op.list_op_names():
        tvm.ir.op._ffi_api.RegisterOp(NAME, "Local response normalisation across channels.")
        tvm.ir.register_op_attr(NAME, "FInferType", lambda call, _builder: call.args[0].ty)
        tvm.ir.register_op_attr(NAME, "FPurity", True)
    return tvm.ir.Op.get(NAME)


OP = _register()


def lrn(data: Expr, size: int, before: int, alpha: float, beta: float, bias: float) -> relax.Call:
    """Normalise `data`; `before` is how many channels of a window of `size` come before the one being normalised."""
    attrs = tvm.ir.make_node("ir.DictAttrs", size=size, before=before, alpha=alpha, beta=beta, bias=bias)
    return relax.Call(OP, [data], attrs)

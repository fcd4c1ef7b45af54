"""`tvm_int8.overlay`: the Relax operator for a tensor that shares its memory with others, so that nothing is copied.

    out = tvm_int8.overlay(*inputs, attrs={"offsets": [...], "shape": [...], "dtype": ...})

Input i begins `offsets[i]` bytes behind the first byte of `out`: the parts of a concatenation one behind the other, the
source of a slice before it (a negative offset).  `passes.plan_memory` gives it its memory; it runs no code.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tvm_int8.own_op import register

NAME = "tvm_int8.overlay"
OP = register(NAME, "A tensor in the memory of others.")


def overlay(inputs: Sequence[relax.Expr], offsets: Sequence[int], shape: Sequence[int], dtype: str) -> relax.Call:
    """The tensor of `shape` and `dtype` in which, or around which, the inputs lie; offsets in bytes."""
    attrs = tvm.ir.make_node(
        "ir.DictAttrs", offsets=[int(o) for o in offsets], shape=[int(s) for s in shape], dtype=dtype
    )
    return relax.Call(OP, list(inputs), attrs)


def is_overlay(expr) -> bool:
    """Whether an expression is a tensor in the memory of others."""
    return isinstance(expr, relax.Call) and expr.op == OP


def offsets_of(call: relax.Call) -> list[int]:
    """How many bytes behind the result's first byte each input begins."""
    return [int(offset) for offset in call.attrs["offsets"]]

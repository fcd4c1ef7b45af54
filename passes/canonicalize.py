"""Canonicalize: one spelling for what exporters write in several ways.

before                                                 after
expand_dims, squeeze, flatten, nn.batch_flatten        reshape
reshape(reshape(x))                                    reshape(x), or x
reshape(concat([N, C] reshapes)) to [N, rows, ...]     concat of reshapes to [N, rows, ...]
permute_dims that only moves axes of length 1          reshape
split -> TupleGetItem i                                strided_slice
mean over H and W                                      nn.adaptive_avg_pool2d (1, 1), and a reshape unless keepdims
nn.avg_pool2d over the whole map                       nn.adaptive_avg_pool2d (1, 1)
nn.pad with 0 -> nn.conv2d                             nn.conv2d with padding
nn.pad with 0 -> nn.avg_pool2d(count_include_pad)      nn.avg_pool2d with padding
nn.conv2d with a constant HWIO weight                  nn.conv2d with an OIHW weight
subtract(x, c), divide(x, c)                           add(x, -c), multiply(x, 1 / c)
add(c, x), multiply(c, x)                              add(x, c), multiply(x, c)
maximum(x, 0); minimum(maximum(x, a), b), clip(relu)   nn.relu; clip             (inner result read once, a <= b)
sum(stack(a, b, ...)) over the stacked axis            add(add(a, b), ...)

Requires   constants folded (FoldConstants): c, a, b and weights are constants.
Ensures    of the left column only what is listed under "Not" remains; shapes, dtypes and names are kept.
Not        nn.pad with another mode or value, of the batch or channel axis, or by a negative width; nn.pad before an
           nn.avg_pool2d that does not count its padding or rounds its size up; mean over H alone or W alone;
           `x * sigmoid(x)`, which stays for the kernel fusion; 1 / c where some c is 0; a split whose tuple is used as
           a whole.
Source     the operators' definitions in ONNX and Relax.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_int8.passes import canonical_arithmetic, canonical_pooling, canonical_shapes
from tvm_int8.passes.dataflow import Expr, Rebuilder, op_name, rebuild

_RULES = {**canonical_shapes.RULES, **canonical_pooling.RULES, **canonical_arithmetic.RULES}


@tvm.transform.module_pass(opt_level=0, name="Canonicalize")
class Canonicalize:
    """Rewrite every operator that has a simpler or more common spelling."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module in canonical spelling."""
        return rebuild(mod, _rewrite)


def _rewrite(binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
    if isinstance(value, relax.TupleGetItem):
        return canonical_shapes.slice_of_split(value, new)
    rule = _RULES.get(op_name(value))
    return rule(value, new) if rule is not None else None

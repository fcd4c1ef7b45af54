"""FoldScaleShift: per-channel multiplies and adds go into the weights next to them.

before   conv2d(x, W) -> add c1 -> multiply c2 -> subtract c3 ...        any order, any number, scalars or [1,C,1,1]
after    add(conv2d(x, W'), b[1,OC,1,1])                                  one bias; none when it is all zero

before   multiply -> add -> conv2d without padding (or a multiply alone before any conv2d), nothing in between
after    add(conv2d(x, W'), b[1,OC,1,1])

before   concat -> divide -> add -> multiply -> relu                       no weights on either side
after    concat -> multiply(., [1,C,1,1]) -> add(., [1,C,1,1]) -> relu

Requires   constant weights for a scale (a pure shift only becomes the bias, so QDQ weights stay untouched); each link
           read by the next one only, and none of them an output. Run FoldConstants first.
Ensures    a chain of scales and shifts is folded, or is at most one multiply and one add. A convolution's bias is one
           add of [1,OC,1,1], a dense layer's one add of [OC] (or [1,OC]). Layer names stay with the layers; the last
           add has the name of the end of the chain. A lone scalar multiply or add stays as written.
Not        constants that vary along H or W; scales across a non-linearity, a pool or a reshape; forward into a padded
           convolution when there is a shift (the border would see W*shift of data that is not there).
Source     the batch-norm folding of Jacob et al., "Quantization and Training of Neural Networks for Efficient
           Integer-Arithmetic-Only Inference" (2018), section 3.2, applied to any affine chain.
"""

from __future__ import annotations

import tvm

from tvm_int8.passes.affine_chains import fold_chains


@tvm.transform.module_pass(opt_level=0, name="FoldScaleShift")
class FoldScaleShift:
    """Fold per-channel scales and shifts into neighbouring convolutions and dense layers, or merge them."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with every affine chain folded or merged."""
        return fold_chains(mod)

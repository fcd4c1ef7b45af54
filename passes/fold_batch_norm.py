"""FoldBatchNorm: batch normalisation disappears into the layer before it, or becomes one multiply and one add.

before   nn.batch_norm(conv2d(x, W) [+ bias], gamma, beta, mean, var)[0]
after    add(conv2d(x, W'), b'[1,OC,1,1])        W' = W * gamma / sqrt(var + eps), b' likewise

before   nn.batch_norm(concat(...), ...)[0]                        no layer with constant weights in front
after    add(multiply(concat(...), [1,C,1,1]), [1,C,1,1])

Requires   inference mode (a batch norm in training mode is an error) and constant gamma, beta, mean and variance.
Ensures    no such `nn.batch_norm` is left, nor its tuple. Scales and shifts next to one are folded along with it, under
           the rules of FoldScaleShift. Computed in float64, stored in the dtype of the weights.
Not        statistics that are not constant: those batch norms stay.
Source     Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
           (2018), section 3.2.
"""

from __future__ import annotations

import tvm

from tvm_int8.passes.affine_chains import fold_chains


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Fold batch normalisation into convolutions and dense layers."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module without batch norms of constant statistics."""
        return fold_chains(mod, around_batch_norm=True)

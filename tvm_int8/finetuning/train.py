"""What `finetune` does once PyTorch is known to be there: from one `QuantizedModel` to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import tvm
from tvm import relax

from tvm_int8 import pipeline
from tvm_int8.passes.dataflow import Dataflow, Rebuilder, constant, rebuild
from tvm_int8.passes.linear_layers import with_weight
from tvm_int8.passes.order_winograd import by_layer
from tvm_int8.passes.quantizers import Quantizers
from tvm_int8.quantization.winograd_choice import choose_winograd
from tvm_int8.quantized_model import QuantizedModel

from .checkpoint import Checkpoint, fingerprint_of_model, fingerprint_of_quantizers
from .fake_quantizers import effective
from .options import Options
from .torch_network import TorchNetwork
from .training import Training
from .training_data import Augment, TrainingData


def train(
    quantized: QuantizedModel,
    data: Any,
    labels: Any,
    options: Options,
    augment: Augment | None,
    checkpoint: Any,
    resume: bool,
    progress: bool,
) -> tuple[QuantizedModel, list[float]]:
    """The trained network, and the mean loss of each epoch; for parameters and errors see `tvm_int8.finetune`."""
    assert quantized.quantizers is not None
    network = TorchNetwork(quantized.float_mod, quantized.quantizers)
    given = TrainingData(data, labels, network.flow, network.inputs, augment)
    kept = None
    if checkpoint is not None:
        identity = {
            "model": fingerprint_of_model(quantized.float_mod),
            "quantisation": fingerprint_of_quantizers(quantized.quantizers),
            "data": given.fingerprint(),
            "options": str(options),
        }
        kept = Checkpoint(checkpoint, identity)
    with torch.enable_grad():
        losses = Training(network, TorchNetwork(quantized.float_mod), given, options, kept, progress).run(resume)
    return with_quantizers(quantized, network.trained_quantizers()), losses


def with_quantizers(quantized: QuantizedModel, quantizers: Quantizers) -> QuantizedModel:
    """The same network with other integers, and ways to compute these by tiles."""
    assert quantized.config is not None and quantized.table is not None
    flow = Dataflow(quantized.float_mod)
    quantizers = replace(quantizers, winograd=choose_winograd(flow, quantizers, quantized.table, quantized.config))
    trained = with_weights(quantized.float_mod, quantizers)  # of which images of bytes are shifted
    mod = pipeline.quantize(quantized.table, quantized.config, quantizers)(trained)
    return replace(quantized, mod=mod, winograd=by_layer(flow, quantizers.winograd), quantizers=quantizers)


def with_weights(mod: tvm.IRModule, quantizers: Quantizers, corrections: bool = False) -> tvm.IRModule:
    """A float module with the weights that integers stand for; on request, with what is added to layers."""

    def rewrite(binding: relax.VarBinding, value: relax.Expr, new: Rebuilder) -> relax.Expr | None:
        weight = quantizers.weights.get(binding.var.name)
        if weight is None:
            return None
        real = effective(binding.value, weight.real, quantizers.divisor(binding.value))
        layer: relax.Expr = with_weight(value, real)
        if corrections and weight.correction is not None:
            layer = relax.op.add(layer, constant(weight.correction))
        return layer

    return rebuild(mod, rewrite)

"""What training makes small: how far outputs are from the FP32 network's, and from labels.

    distillation     one output of classes: mean over T of T^2 KL(softmax(y / T) || softmax(z / T)), z trained, y FP32
                     anything else:         mean (z - y)^2 / mean y^2, over all outputs
    labels           cross entropy of the first output, over axis 1

Source     Hinton, Vinyals, Dean 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import op_name, shape_of

TEMPERATURES = (1.0, 4.0)
"""Of distillation: 1 asks for the same decisions, 4 for the same distances between classes thought unlikely, too."""
IGNORED = (255, -1)
"""Labels of what has none."""
_TINY = 1e-12


class Loss:
    """For the outputs of a network.

    Parameters
    ----------
    flow : Dataflow
        Of the float network.
    distillation : float
        Share of distillation in the loss where there are labels, 0 to 1.
    """

    def __init__(self, flow: Dataflow, distillation: float):
        self.distillation = distillation
        shape, value = shape_of(flow.outputs[0]), flow.value(flow.outputs[0])
        while op_name(value) in ("reshape", "squeeze", "nn.batch_flatten"):
            value = flow.value(value.args[0])
        self._logarithm = op_name(value) == "nn.softmax"
        classes = len(shape) >= 2 and shape[1] > 1 and all(dim == 1 for dim in shape[2:])
        self._classifies = len(flow.outputs) == 1 and classes

    def __call__(
        self, outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor:
        """The mean over samples; `wanted` are the FP32 network's outputs."""
        if labels is None:
            return self._distance(outputs, wanted)
        from_labels = self._cross_entropy(outputs[0], labels)
        if self.distillation == 0:
            return from_labels
        return self.distillation * self._distance(outputs, wanted) + (1 - self.distillation) * from_labels

    def _logits(self, output: torch.Tensor) -> torch.Tensor:
        return torch.log(output.clamp_min(_TINY)) if self._logarithm else output

    def _distance(self, outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self._classifies:
            pairs = [(z, y) for z, y in zip(outputs, wanted, strict=True) if z.is_floating_point()]
            return sum(
                ((z - y).square().mean() / y.square().mean().clamp_min(_TINY) for z, y in pairs), torch.zeros(())
            )
        z, y = (self._logits(out[0]).flatten(1) for out in (outputs, wanted))
        return sum((t**2 * _divergence(z / t, y / t) for t in TEMPERATURES), torch.zeros(())) / len(TEMPERATURES)

    def _cross_entropy(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self._logits(output)
        logits = logits.reshape(logits.shape[0], logits.shape[1], *labels.shape[1:])
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED[0])


def _divergence(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the classes that logits [N, C] stand for, from those of y: the mean over samples."""
    return functional.kl_div(z.log_softmax(1), y.log_softmax(1), reduction="batchmean", log_target=True)

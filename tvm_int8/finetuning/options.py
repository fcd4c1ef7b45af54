"""How to train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """See `tvm_int8.finetune`."""

    epochs: int
    learning_rate: float
    batch_size: int
    distillation: float
    seed: int

"""The table of Relax operators that PyTorch can compute, and what their rules are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tvm import relax

from tvm_int8.rule_table import RuleTable

RULES = RuleTable()
"""Operator -> rule(call, *operands) -> tensor, or a tuple of them; operands that are no tensors are left out."""
relax_op = RULES.rule_for


def ints(values: Any) -> list[int]:
    """Attributes and literal arguments as integers; fields of a tuple, too."""
    fields = values.fields if isinstance(values, relax.Tuple) else values
    return [int(getattr(value, "value", value)) for value in fields]


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name in TVM."""
    return torch.bool if name == "bool" else torch.from_numpy(np.zeros(0, name)).dtype

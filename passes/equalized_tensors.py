"""The tensors of a module that are no longer what the model computes, but scaled and shifted per channel.

They have names of their own, so that no range calibrated for the model's tensors is taken for theirs; an attribute of
`main` says what they stand for:  model's tensor = scale * tensor + shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm

_ATTRIBUTE = "equalized"
_SUFFIX = "_equalized"


@dataclass(frozen=True)
class Equalized:
    """Name of the model's tensor, which is `scale * tensor + shift`; both float64 [C]."""

    name: str
    scale: np.ndarray
    shift: np.ndarray

    def then(self, scale: np.ndarray | float, shift: np.ndarray | float) -> Equalized:
        """What stands for the same tensor after `tensor = scale * new tensor + shift`."""
        return Equalized(self.name, self.scale * scale, self.scale * shift + self.shift)


def equalized_tensors(mod: tvm.IRModule) -> dict[str, Equalized]:
    """By name of the tensor in the module; empty for a module as the model is."""
    attrs = mod["main"].attrs
    if attrs is None or _ATTRIBUTE not in attrs:
        return {}
    return {
        str(name): Equalized(str(original), *(np.array([float(x) for x in vector]) for vector in vectors))
        for name, (original, *vectors) in attrs[_ATTRIBUTE].items()
    }


def equalized(mod: tvm.IRModule, name: str) -> Equalized:
    """What a tensor of the module stands for: itself, if it has not been touched."""
    return equalized_tensors(mod).get(name) or Equalized(name, np.ones(1), np.zeros(1))


def with_equalized_tensors(mod: tvm.IRModule, tensors: Mapping[str, Equalized]) -> tvm.IRModule:
    """The module with these entries besides those it has."""
    entries = {
        name: [entry.name, entry.scale.tolist(), entry.shift.tolist()]
        for name, entry in {**equalized_tensors(mod), **tensors}.items()
    }
    out = mod.clone()
    out.update_func(mod.get_global_var("main"), mod["main"].with_attr(_ATTRIBUTE, entries))
    return out


def equalized_name(name: str) -> str:
    """The name of what stands for a tensor from now on."""
    return name if name.endswith(_SUFFIX) else name + _SUFFIX

"""A rule turns the order for one kernel (`tvm_int8.specs`) into a scheduled PrimFunc.

Rules are tried in the order of `schedules.registry.RULES`; `applies` says whether a rule can deliver, `build`
delivers.  A PrimFunc's parameters are the spec's inputs, then the packed constants, then the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_int8.specs import LANES, Kernel, Program, Spec

from .cpu import Cpu
from .knobs import KnobSpace


@dataclass(frozen=True)
class Constants:
    """A spec's constants as the model has them.

    weight : OIHW (IOHW when transposed), int8 or float32, or None
    bias : [O], int32 for integer data (zero-point correction included), float32 otherwise, or None
    channels : one float32 [C] per "channel" operand of the program, in order
    pad : uint8 [C], what is outside of the data where each channel has its own zero point, or None
    wide_weight, input_scale, output_scale : of a `WinogradConv2d`, whose weight and bias are other
        ones, too; see there
    """

    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    channels: Sequence[np.ndarray] = field(default_factory=tuple)
    pad: np.ndarray | None = None
    wide_weight: np.ndarray | None = None
    input_scale: np.ndarray | None = None
    output_scale: np.ndarray | None = None

    @staticmethod
    def of(roles: Sequence[tuple[str, np.ndarray]]) -> Constants:
        """From (role, array) pairs, as kernel orders carry them."""
        single = {role: array for role, array in roles if role != "channel"}
        channels = tuple(array for role, array in roles if role == "channel")
        return Constants(channels=channels, **single)


class Rule:
    """Base of all rules.

    template : the rule's name in tuning logs
    version : to be raised when a change of the schedule makes records of its knobs worthless
    """

    template = ""
    version = 1

    def knob_space(self, spec: Any, cpu: Cpu) -> KnobSpace:
        """What can be chosen for a spec that `applies` accepts: nothing, for most kinds of kernels."""
        return KnobSpace()

    def applies(self, spec: Spec, cpu: Cpu) -> bool:
        """Whether this rule can build `spec` for `cpu`."""
        raise NotImplementedError

    def build(self, spec: Any, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
        """Deliver the kernel of a spec that `applies` accepts; without `knobs` it takes the space's heuristic."""
        raise NotImplementedError


def pad_channels(array: np.ndarray, block: int = LANES) -> np.ndarray:
    """[C] -> [ceil(C / block) * block], zeros behind."""
    return np.pad(array, (0, -len(array) % block))


def channel_operands(program: Program, constants: Constants, block: int = LANES) -> list[np.ndarray]:
    """The padded float32 arrays of the program's "channel" operands."""
    assert len(constants.channels) == sum(operand.kind == "channel" for operand in program.operands)
    return [pad_channels(np.asarray(c, np.float32), block) for c in constants.channels]

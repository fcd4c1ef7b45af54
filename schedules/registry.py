"""All rules, in the order in which they are asked."""

from __future__ import annotations

from dataclasses import replace

from tvm_int8.specs import Kernel, Spec

from .channel_gather import ChannelGatherRule
from .channels_last import ChannelsLastRule
from .conv2d import Conv2dRule
from .conv2d_amx import Conv2dAmxRule
from .cpu import Cpu
from .depth_to_space import DepthToSpaceRule
from .depthwise_conv2d import DepthwiseConv2dRule
from .elementwise import ElementwiseRule
from .image import ImageRule
from .knobs import Choice
from .lrn import LrnRule
from .pool2d import Pool2dRule
from .resize2d import Resize2dRule
from .rule import Constants, Rule
from .window2d import Window2dRule
from .winograd_conv2d import WinogradConv2dRule

RULES: tuple[Rule, ...] = (
    WinogradConv2dRule(),
    DepthwiseConv2dRule(),
    Conv2dAmxRule(),
    Conv2dRule(),
    Pool2dRule(),
    LrnRule(),
    ImageRule(),
    ElementwiseRule(),
    ChannelGatherRule(),
    Resize2dRule(),
    DepthToSpaceRule(),
    ChannelsLastRule(),
    Window2dRule(),
)


def applicable(spec: Spec, cpu: Cpu) -> list[Rule]:
    """All rules that can build `spec`, the one that is taken without tuning first."""
    return [rule for rule in RULES if rule.applies(spec, cpu)]


def rule_of(template: str) -> Rule | None:
    """The rule with knobs that tuning logs call `template`."""
    return next((rule for rule in RULES if template and rule.template == template), None)


def deliver(spec: Spec, constants: Constants, cpu: Cpu, choice: Choice | None = None) -> Kernel:
    """Build `spec` as chosen, by default with the heuristic of the first rule that applies."""
    if choice is not None:
        kernel = rule_of(choice.template).build(spec, constants, cpu, choice.knobs)
        return replace(kernel, origin=choice.origin)
    for rule in RULES:
        if rule.applies(spec, cpu):
            return rule.build(spec, constants, cpu)
    raise NotImplementedError(f"no rule for {spec.to_json()}")

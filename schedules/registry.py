"""All rules, in the order in which they are asked."""

from __future__ import annotations

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
from .lrn import LrnRule
from .pool2d import Pool2dRule
from .resize2d import Resize2dRule
from .rule import Constants, Rule
from .window2d import Window2dRule

RULES: tuple[Rule, ...] = (
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


def deliver(spec: Spec, constants: Constants, cpu: Cpu, knobs: dict | None = None) -> Kernel:
    """Build `spec` with the first rule that applies."""
    for rule in RULES:
        if rule.applies(spec, cpu):
            return rule.build(spec, constants, cpu, knobs)
    raise NotImplementedError(f"no rule for {spec.to_json()}")

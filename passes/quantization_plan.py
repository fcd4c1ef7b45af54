"""Which tensors become integers: decided on the float graph, used by the observers and by InsertQdq alike.

A *unit* is what will be one kernel (see `groups`), or a single other operator.  Convolutions and dense layers
*compute* in INT8. Pools, LRN, concat, resize, element-wise operators and movers of data *carry* integers when what they
deliver is wanted as integers.  Everything else (softmax, ...) is float.  A tensor is quantised when some unit
that reads it computes in INT8, or carries integers on: so data stays 8 bits wide from one convolution to the next, and
outputs are never quantised for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_int8.config import QuantizationConfig
from tvm_int8.quantization.bit_widths import INTEGER_BITS

from .byte_inputs import is_byte_image
from .dataflow import Dataflow
from .expressions import Expr, Var, dtype_of, op_name, shape_of, vars_in
from .groups import CONVOLUTIONS, Group, fusion_groups, is_packable

#: Operators whose output has the scale of their input.
SAME_SCALE = ("nn.max_pool2d", "reshape", "permute_dims", "strided_slice", "nn.pad", "take")
MOVED_AS_INTEGERS = ("reshape", "permute_dims")


@dataclass(eq=False)
class Unit:
    """A future kernel, or a single operator."""

    kind: str  # "compute" | "carry" | "float"
    op: str
    layer: str
    inputs: list[Var]
    output: Var
    group: Group | None = None
    same_scale: bool = False
    reason: str = ""


@dataclass
class QuantizationPlan:
    """quantized: tensors to store as integers; source: tensor -> tensor whose scale it takes over.

    by_channel: those whose channels may have scales of their own, as far as producers and readers are concerned.
    """

    units: list[Unit] = field(default_factory=list)
    quantized: dict[Var, None] = field(default_factory=dict)  # an ordered set
    by_channel: set[Var] = field(default_factory=set)
    source: dict[Var, Var] = field(default_factory=dict)

    def origin(self, var: Var) -> Var:
        """The tensor whose observed range gives `var` its scale."""
        while var in self.source:
            var = self.source[var]
        return var

    @property
    def moved(self) -> set[Var]:
        """Tensors whose integers are those of others already: what moves them, or puts them together, keeps them."""
        units = [unit for unit in self.units if unit.output in self.quantized]
        copies = {unit.output for unit in units if self.source.get(unit.output) in unit.inputs}
        joined = {
            unit.output
            for unit in units
            if unit.op == "concat" and all(self.origin(var) == self.origin(unit.output) for var in unit.inputs)
        }
        return copies | joined

    def channel_points(self) -> list[str]:
        """Points whose channels calibration looks at one by one: what convolutions read, or has a scale per channel."""
        read = {unit.group.anchor.value.args[0] for unit in self.units if unit.kind == "compute"} | self.by_channel
        return [var.name for var in self.points() if var in read and len(shape_of(var)) == 4]

    def points(self) -> list[Var]:
        """Tensors whose ranges must be known."""
        return [var for var in self.quantized if self.origin(var) is var]


def plan_quantization(
    flow: Dataflow, config: QuantizationConfig, groups: list[Group] | None = None
) -> QuantizationPlan:
    """Decide for a canonical float module; `groups` are its `future_kernels`, where they are known already."""
    plan = QuantizationPlan(_units(flow, config, future_kernels(flow, config) if groups is None else groups))
    readers: dict[Var, list[Unit]] = {}
    for unit in plan.units:
        for var in unit.inputs:
            readers.setdefault(var, []).append(unit)
    wants: set[int] = set()
    for unit in reversed(plan.units):
        if _quantizable(unit.output) and any(id(reader) in wants for reader in readers.get(unit.output, ())):
            plan.quantized[unit.output] = None
        if unit.kind == "compute" or (unit.kind == "carry" and unit.output in plan.quantized):
            wants.add(id(unit))
    for param in flow.params:
        if _quantizable(param) and any(id(reader) in wants for reader in readers.get(param, ())):
            plan.quantized[param] = None
    for unit in plan.units:
        if (
            unit.same_scale
            and unit.kind == "carry"
            and unit.output in plan.quantized
            and unit.inputs[0] in plan.quantized
        ):
            plan.source[unit.output] = unit.inputs[0]
    if config.per_channel_activations:
        plan.by_channel = {
            unit.output
            for unit in plan.units
            if unit.output in plan.quantized and _delivers_channels(unit) and not flow.is_output(unit.output)
            if all(_reads_channels(reader, unit.output) for reader in readers[unit.output])
        }
    return plan


def future_kernels(flow: Dataflow, config: QuantizationConfig) -> list[Group]:
    """What will be one kernel each."""
    return fusion_groups(flow, config.plain_convolutions)


def _delivers_channels(unit: Unit) -> bool:
    """Whether the unit's kernel can store every channel in a scale of its own: its epilogue does the scaling."""
    return _is_channelwise(unit) and len(shape_of(unit.output)) == 4


def _reads_channels(unit: Unit, var: Var) -> bool:
    """Whether a unit can read `var` with a scale per channel: as a convolution's data or an element-wise operand."""
    return _is_channelwise(unit) and all(shape_of(call) == shape_of(var) for call in _elementwise_readers(unit, var))


def _is_channelwise(unit: Unit) -> bool:
    return unit.group is not None and (unit.kind == "compute" or (unit.kind == "carry" and unit.group.anchor is None))


def _elementwise_readers(unit: Unit, var: Var) -> list[Expr]:
    calls = [binding.value for binding in unit.group.bindings if binding is not unit.group.anchor]
    return [call for call in calls if var in list(vars_in(call))]


def _quantizable(var: Expr) -> bool:
    return dtype_of(var) == "float32" and len(shape_of(var)) >= 2


def _units(flow: Dataflow, config: QuantizationConfig, found: list[Group]) -> list[Unit]:
    from .order_kernels import layer_name

    groups = {group.exit: group for group in found}
    inside = {binding.var for group in groups.values() for binding in group.bindings}
    units = []
    for binding in flow.bindings:
        if binding.var in groups:
            group = groups[binding.var]
            lead = group.anchor or group.bindings[0]
            layer, op = layer_name(flow, lead.var), op_name(lead.value)
            inputs = [expr for expr in group.external_inputs() if isinstance(expr, Var)]
            kind = "compute" if op in CONVOLUTIONS else "carry"
            unit = Unit(kind, op, layer, inputs, group.exit, group, op in SAME_SCALE and len(group.bindings) == 1)
            unit.same_scale |= (
                op == "image.resize2d"
                and len(group.bindings) == 1
                and str(lead.value.attrs.method) == "nearest_neighbor"
            )
        elif binding.var in inside:
            continue
        else:
            op, layer = op_name(binding.value), layer_name(flow, binding.var)
            inputs = list(vars_in(binding.value))
            movable = op in MOVED_AS_INTEGERS and is_packable(binding.value)
            movable = movable or (op in MOVED_AS_INTEGERS and dtype_of(binding.value) == "float32")
            unit = Unit("carry" if movable else "float", op, layer, inputs, binding.var, None, movable)
            whole = movable or is_byte_image(binding.value)
            unit.reason = "" if whole else f"{op or 'this operator'} has no integer form"
        bits = config.bits.weight(layer) if unit.kind == "compute" and config.bits is not None else INTEGER_BITS
        if isinstance(bits, int) and bits > INTEGER_BITS:
            unit.kind, unit.reason = "float", f"its weights have {bits} bits, and INT8 kernels take {INTEGER_BITS}"
        if unit.kind != "float" and config.excludes(unit.layer, unit.op):
            unit.kind, unit.reason = "float", "excluded by the configuration"
        units.append(unit)
    return units

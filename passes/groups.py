"""Which operators become one kernel: an anchor and the element-wise operators behind it, up to a quantize.

    conv2d -> add(bias) -> add(residual) -> relu -> quantize      one group, exit = the quantize
    conv2d -> sigmoid, multiply(both) -> quantize                 one group: the region between has a single exit

A group is grown from its anchor: as long as everything that leaves the region can be absorbed and again leaves through
a single variable, the region grows.  Quantisation uses the same groups on the float graph to see which tensors will
exist in memory, so that what it quantises is what the kernels store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm import relax

from . import lrn_op
from .dataflow import Dataflow
from .elementwise_ops import data_operands, is_elementwise
from .expressions import Expr, Var, const_value, dtype_of, op_name, shape_of
from .quantization_parameters import any_quantization_of, quantization_of

#: Anchors: how many element-wise operators they take in. Movers of data take none, only a quantize.
CONVOLUTIONS = ("nn.conv2d", "nn.conv2d_transpose")
POOLS = ("nn.max_pool2d", "nn.avg_pool2d", "nn.adaptive_avg_pool2d")
WITH_EPILOGUE = (*CONVOLUTIONS, *POOLS, "image.resize2d", lrn_op.NAME)
CHANNEL_MOVERS = ("concat", "strided_slice", "nn.pad", "take")
CLAMPS = ("nn.relu", "clip")
MAX_STEPS = 24


@dataclass
class Group:
    """Bindings that become one kernel; `anchor` is None for purely element-wise groups."""

    anchor: relax.VarBinding | None
    bindings: list[relax.VarBinding] = field(default_factory=list)
    exit: Var | None = None  # the float tensor the kernel delivers
    quantize: relax.VarBinding | None = None  # what stores it as integers, if anything

    @property
    def result(self) -> Var:
        """The variable the kernel binds."""
        return self.exit if self.quantize is None else self.quantize.var

    def external_inputs(self) -> list[Expr]:
        """Operands that come from outside, one per use, constants included."""
        inside = {binding.var for binding in self.bindings}
        found = []
        for binding in self.bindings:
            call = binding.value
            operands = data_operands(call) if is_elementwise(call) else list(call.args)[: 1 if is_view(call) else None]
            for operand in operands:
                for item in operand.fields if isinstance(operand, relax.Tuple) else [operand]:
                    if not (isinstance(item, Var) and item in inside):
                        found.append(item)
        return found


def logical_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The 4-D view of a tensor that kernels know: [N, C, H, W], and [N, C] as [N, C, 1, 1]; None for other ranks."""
    if len(shape) == 4:
        return shape
    return (*shape, 1, 1) if len(shape) == 2 else None


def is_view(call: Expr) -> bool:
    """Whether a reshape only adds or drops trailing dimensions of size one: nothing moves in the packed layout."""
    if op_name(call) != "reshape" or not is_packable(call) or not is_packable(call.args[0]):
        return False
    return logical_shape(shape_of(call)) == logical_shape(shape_of(call.args[0]))


def is_packable(expr: Expr) -> bool:
    """Whether kernels can hold this tensor."""
    return (
        isinstance(expr.ty, relax.TensorType) and logical_shape(shape_of(expr)) is not None and 0 not in shape_of(expr)
    )


def _broadcast_fits(operand: Expr, shape: tuple[int, ...]) -> bool:
    """Whether an operand of an element-wise operator can be fetched: same shape, number, per channel, vector or map."""
    own = shape_of(operand)
    value = const_value(operand)
    if own == shape or (value is not None and value.size == 1):
        return True
    aligned = (1,) * (len(shape) - len(own)) + tuple(own)
    if len(aligned) != len(shape) or len(shape) < 2:
        return False
    if value is not None:
        return aligned[1] == shape[1] == value.size or aligned == shape
    if len(own) != len(shape) or aligned[0] != shape[0]:
        return False
    channels_only = aligned[1] == shape[1] and all(d == 1 for d in aligned[2:])
    pixels_only = aligned[1] == 1 and aligned[2:] == shape[2:]
    return channels_only or pixels_only


def fusable(binding: relax.VarBinding) -> bool:
    """Whether a binding is an element-wise operator on float tensors that an epilogue can hold."""
    call = binding.value
    if not is_elementwise(call) or not is_packable(call) or dtype_of(call) != "float32":
        return False
    shape = shape_of(call)
    operands = data_operands(call)
    if not all(dtype_of(operand) == "float32" and _broadcast_fits(operand, shape) for operand in operands):
        return False
    slope = const_value(call.args[1]) if op_name(call) == "nn.prelu" else None
    return slope is None or slope.size in (1, shape[1])


def is_anchor(binding: relax.VarBinding, flow: Dataflow) -> bool:
    """Whether a kernel starts here: the operator is one, and a kernel exists for this call (layouts, axes, modes)."""
    call, name = binding.value, op_name(binding.value)
    if name not in (*WITH_EPILOGUE, *CHANNEL_MOVERS) or not is_packable(call):
        return False
    if dtype_of(call) not in (("float32",) if name in WITH_EPILOGUE else ("float32", "uint8", "int8")):
        return False
    if name in CONVOLUTIONS:
        return _has_constant_weight(call, flow) and _is_plain_layout(call, name)
    return _mover_supported(call, name)


def _is_plain_layout(call: Expr, name: str) -> bool:
    kernel_layout = "OIHW" if name == "nn.conv2d" else "IOHW"
    return str(call.attrs.data_layout) == "NCHW" and str(call.attrs.kernel_layout) == kernel_layout


def _has_constant_weight(call: Expr, flow: Dataflow) -> bool:
    weight = flow.value(call.args[1])
    return const_value(weight.args[0] if op_name(weight) == "dequantize" else weight) is not None


def _mover_supported(call: Expr, name: str) -> bool:
    if name in ("nn.max_pool2d", "nn.avg_pool2d"):
        return str(call.attrs.layout) == "NCHW" and (
            name == "nn.max_pool2d" or all(int(d) == 1 for d in call.attrs.dilation)
        )
    if name == "nn.adaptive_avg_pool2d":
        return shape_of(call)[2:] == (1, 1)
    if name == lrn_op.NAME:
        return len(shape_of(call)) == 4
    if name == "image.resize2d":
        return str(call.attrs.layout) == "NCHW" and str(call.attrs.method) in ("nearest_neighbor", "linear")
    if name == "concat":
        fields = call.args[0].fields
        return int(call.attrs.axis) in (1, 1 - len(shape_of(call))) and all(is_packable(f) for f in fields)
    if name == "strided_slice":
        return len(shape_of(call)) == 4 and is_packable(call.args[0]) and slice_ranges(call) is not None
    if name == "take":
        order = const_value(call.args[1])
        return (
            len(shape_of(call)) == 4
            and int(call.attrs.axis) == 1
            and order is not None
            and order.ndim == 1
            and is_packable(call.args[0])
        )
    if name == "nn.pad":
        widths = [int(w) for w in call.attrs.pad_width]
        if len(shape_of(call)) != 4 or str(call.attrs.pad_mode) != "constant" or min(widths) < 0 or any(widths[:2]):
            return False
        return not any(widths[2:4]) or (not any(widths[4:]) and float(call.attrs.pad_value) == 0.0)
    return False


def slice_ranges(call: Expr) -> dict[int, tuple[int, int]] | None:
    """axis -> (begin, step) of a strided_slice of a 4-D tensor; None when it is not one this module understands."""
    axes, begin, _, *rest = (
        tuple(int(field.value) for field in arg.fields) for arg in call.args[1:] if isinstance(arg, relax.Tuple)
    )
    steps = rest[0] if rest else (1,) * len(axes)
    source, target = shape_of(call.args[0]), shape_of(call)
    ranges = {}
    for axis, first, step in zip(axes, begin, steps, strict=True):
        if step < 1 or axis < 0:
            return None
        first = max(first + source[axis], 0) if first < 0 else min(first, source[axis])
        if (first, step) != (0, 1) or source[axis] != target[axis]:
            ranges[axis] = (first, step)
    movable = set(ranges) <= {1} or set(ranges) <= {2, 3}
    return ranges if movable else None


def fusion_groups(flow: Dataflow, plain_convolutions: bool = False) -> list[Group]:
    """All groups, in the order of their exits; bindings in none of them are islands, dequantizes or movers of bytes.

    With `plain_convolutions` a convolution takes in its bias and then one ReLU or clip, and nothing else.
    """
    taken: set[Var] = set()
    position = {binding.var: i for i, binding in enumerate(flow.bindings)}
    groups = []
    for binding in flow.bindings:
        if binding.var in taken:
            continue
        if is_anchor(binding, flow):
            group = Group(binding, [binding], binding.var)
        elif fusable(binding):
            group = Group(None, [binding], binding.var)
        else:
            continue
        if op_name(binding.value) not in CHANNEL_MOVERS:
            plain = plain_convolutions and op_name(binding.value) in CONVOLUTIONS
            _grow(group, flow, taken, position, _continues_plainly if plain else _continues)
        _absorb_quantize(group, flow)
        taken.update(b.var for b in group.bindings)
        if group.quantize is not None:
            taken.add(group.quantize.var)
        groups.append(group)
    return sorted(groups, key=lambda g: position[g.result])


def _continues(user: relax.VarBinding, _group: Group) -> bool:
    return fusable(user) or is_view(user.value)


def _continues_plainly(user: relax.VarBinding, group: Group) -> bool:
    """Whether `user` is a view, a bias, or the one ReLU or clip behind a convolution."""
    if any(op_name(binding.value) in CLAMPS for binding in group.bindings):
        return is_view(user.value)
    is_bias = op_name(user.value) == "add" and const_value(user.value.args[1]) is not None
    return is_view(user.value) or (fusable(user) and (is_bias or op_name(user.value) in CLAMPS))


def _grow(group: Group, flow: Dataflow, taken: set[Var], position: dict, continues=_continues) -> None:
    shape = logical_shape(shape_of(group.exit))
    while True:
        region = {binding.var for binding in group.bindings}
        added: list[relax.VarBinding] = []
        committed = False
        while len(group.bindings) + len(added) < MAX_STEPS:
            leaving = _leaving(region, flow)
            if leaving is None:
                break
            users = [user for var in leaving for user in flow.consumers[var] if user.var not in region]
            user = min(users, key=lambda b: position[b.var])
            if user.var in taken or not continues(user, group) or logical_shape(shape_of(user.value)) != shape:
                break
            region.add(user.var)
            added.append(user)
            rest = _leaving(region, flow, outputs_leave=True)
            if rest == {user.var}:
                group.bindings += added
                group.exit = user.var
                committed = True
                break
        if not committed:
            return


def _leaving(region: set[Var], flow: Dataflow, outputs_leave: bool = False) -> set[Var] | None:
    """Variables of the region that something outside reads; None when one is a model output (unless allowed)."""
    leaving = set()
    for var in region:
        if flow.is_output(var):
            if not outputs_leave:
                return None
            leaving.add(var)
        elif any(user.var not in region for user in flow.consumers[var]):
            leaving.add(var)
    return leaving or None


def _absorb_quantize(group: Group, flow: Dataflow) -> None:
    user = flow.only_consumer(group.exit)
    if user is not None and op_name(user.value) == "quantize" and dtype_of(user.value) in ("uint8", "int8"):
        with_program = group.anchor is None or op_name(group.anchor.value) in WITH_EPILOGUE
        found = any_quantization_of(user.value) if with_program else quantization_of(user.value)
        if found is not None:
            group.quantize = user

"""OrderKernels: groups of operators, quantised or float, become kernel orders.

    dequantize(q), dequantize(w) -> conv2d -> add(bias) -> add(dequantize(r)) -> relu -> quantize
        ->  tvm_int8.kernel(q, r, w, bias_int32, channel_scales; Conv2d spec)                    u8 in, u8 out

    float conv2d -> add -> relu   ->  tvm_int8.kernel(x, w, bias; Conv2d spec)                   float32

Requires   DenseToConv2d, UnsignedActivations; canonical float operators in between (no batch_norm).
Ensures    every convolution, pool, resize, concat, slice, pad and element-wise operator with a kernel is an order on
           logical NCHW tensors; what is left are islands (operators TVM legalises), reshapes and permutations.
Method     requantisation with one float multiply per channel: Jacob et al. 2018 (arXiv:1712.05877), section 2.4, with
           the multiplier kept in float32; fusion of conv and element-wise operators: Shen et al. 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import tvm

from tvm_int8.kernel_op import kernel_call
from tvm_int8.specs import Elementwise, Operand, Tensor

from . import anchors
from .conversions import conversion
from .dataflow import Dataflow, Rebuilder, rebuild
from .elementwise_ops import constant_node, expression, is_elementwise
from .epilogue_expression import ACC, Node, dequantized_tensor, linearize, tensor, with_output
from .expressions import Expr, Var, const_value, dtype_of, op_name, shape_of
from .groups import Group, fusion_groups, is_view, logical_shape
from .quantization_parameters import any_quantization_of
from .quantized_values import Quantized, dequantized, dequantized_by_channel, through_views


@tvm.transform.module_pass(opt_level=0, name="OrderKernels")
class OrderKernels:
    """Replace every group by one kernel order, and stand-alone quantize / dequantize by element-wise ones."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with kernels ordered."""
        flow = Dataflow(mod)
        groups = {group.result: group for group in fusion_groups(flow)}

        def rewrite(binding, value, new: Rebuilder):
            group = groups.get(binding.var)
            if group is not None:
                return KernelOrder(group, flow, new, groups.keys()).build()
            if op_name(value) in ("quantize", "dequantize") and const_value(value.args[0]) is None:
                read = _integers_behind(binding.value, flow, new)
                return conversion(value, layer_name(flow, binding.var), binding.var.name, read)
            return None

        return rebuild(mod, rewrite)


def _integers_behind(call: Expr, flow: Dataflow, new: Rebuilder) -> Quantized | None:
    """What a quantize's operand is a dequantize of, in terms of the new function."""
    if op_name(call) != "quantize":
        return None
    found = dequantized(flow, call.args[0]) or dequantized_by_channel(flow, call.args[0])
    return None if found is None else replace(found, source=new.translate(found.source))


def layer_name(flow: Dataflow, var: Var) -> str:
    """The name the user knows a variable's operator by."""
    attrs = flow.function.attrs
    names = attrs["layer_names"] if attrs is not None and "layer_names" in attrs else {}
    return str(names[var.name]) if var.name in names else var.name


class KernelOrder:
    """Collects what one group's kernel reads and computes.

    `inputs` holds the new function's expressions and `tensors` their descriptions; index 0 is the anchor's data where
    there is an anchor. `delivered` are the variables that kernels bind.
    """

    def __init__(self, group: Group, flow: Dataflow, new: Rebuilder, delivered: Container[Var]):
        self.group, self.flow, self.new, self.delivered = group, flow, new, delivered
        self.exit, self.shape = group.exit, shape_of(group.exit)
        self.inputs: list[Expr] = []
        self.tensors: list[Tensor] = []
        self._nodes: dict[Var, Node] = {}
        self._loads: dict = {}

    @property
    def name(self) -> str:
        """The layer's name: the anchor's where there is one."""
        return layer_name(self.flow, self.group.anchor.var if self.group.anchor is not None else self.exit)

    def build(self) -> Expr:
        """The kernel call, in terms of the new function."""
        if self.group.anchor is not None:
            return anchors.BUILDERS[op_name(self.group.anchor.value)](self)
        root, output = self.output(self.epilogue(None))
        program, channels, order = linearize(root, len(self.inputs))
        spec = Elementwise(self.name, tuple(self.tensors[i] for i in order), self.result(output), program, output)
        return self.order(spec, [self.inputs[i] for i in order], [("channel", c) for c in channels])

    def order(self, spec, inputs, constants) -> Expr:
        """The call for a finished spec."""
        return kernel_call(spec, inputs, constants, self.exit.name, self.shape, self._stored())

    def _stored(self):
        """How the integers the kernel delivers are to be read."""
        if self.group.quantize is not None:
            return any_quantization_of(self.group.quantize.value)
        readers = (user.value for user in self.flow.consumers[self.exit])
        return next((any_quantization_of(call) for call in readers if op_name(call) == "dequantize"), None)

    def result(self, output) -> Tensor:
        """Description of what the kernel delivers."""
        return Tensor(logical_shape(self.shape), output.dtype, 0)

    def add_input(self, expr: Expr, dtype: str, shape) -> int:
        """Register a tensor of the old function as an input of the kernel; returns its index."""
        self.inputs.append(self.new.translate(through_views(self.flow, expr, self.delivered)))
        self.tensors.append(Tensor(logical_shape(shape), dtype, 0))
        return len(self.inputs) - 1

    def epilogue(self, anchor_value: Node | None) -> Node:
        """The expression of the group's exit; the anchor's result is `anchor_value`."""
        for binding in self.group.bindings:
            if binding is self.group.anchor:
                self._nodes[binding.var] = anchor_value if anchor_value is not None else ACC
            elif is_view(binding.value):
                self._nodes[binding.var] = self._operand(binding.value.args[0], shape_of(binding.value))
            else:
                assert is_elementwise(binding.value)
                self._nodes[binding.var] = expression(binding.value, self._operand)
        return self._nodes[self.exit]

    def _operand(self, expr: Expr, shape) -> Node:
        if isinstance(expr, Var) and expr in self._nodes:
            return self._nodes[expr]
        value = const_value(expr)
        node = None if value is None else constant_node(value, shape)
        if node is not None:
            return node
        if expr not in self._loads:
            self._loads[expr] = self._load(expr, shape)
        return self._loads[expr]

    def _load(self, expr: Expr, shape) -> Node:
        own = shape_of(expr)
        own = (1,) * (len(shape) - len(own)) + tuple(own)
        logical, full = logical_shape(own), logical_shape(shape)
        kind = "tensor" if logical == full else "vector" if logical[1] == full[1] else "map"
        quantized = dequantized(self.flow, expr) or dequantized_by_channel(self.flow, expr)
        if quantized is None:
            return tensor(self.add_input(expr, "float32", own), Operand(kind))
        index = self.add_input(quantized.source, quantized.dtype, own)
        return dequantized_tensor(index, kind, quantized.dtype, quantized.scale, quantized.zero_point)

    def output(self, root: Node):
        """(root in output units, Output) for the group's quantize, or for float32."""
        if self.group.quantize is None:
            return with_output(root, "float32", 1.0, 0)
        call = self.group.quantize.value
        return with_output(root, dtype_of(call), *any_quantization_of(call))

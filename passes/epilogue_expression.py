"""The algebra of epilogues: element-wise float expressions, simplified symbolically and turned into a `Program`.

Leaves are the kernel's accumulator, tensors in memory (an integer one counts as float32(q - zero_point)), per-channel
constants and numbers.  Constants are folded in float64.  Pushing the output's 1 / scale down to the leaves makes `conv
+ add + relu` cost two fused multiply-adds; a trailing clamp becomes the bounds of the store.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_int8.specs import Operand, Output, Program


@dataclass(frozen=True, eq=False)
class Node:
    """op "acc" | "tensor" (index into the kernel's tensors) | "channel" | "number", or a step's name over `args`."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None  # number: float; channel: float64 [C]; tensor: (index, Operand)

    @property
    def constant(self) -> bool:
        """Known when compiling: a number, or one per channel."""
        return self.op in ("number", "channel")


ACC = Node("acc")
NEUTRAL = 1e-12  # a factor this close to one is scale / scale


def number(value: float) -> Node:
    """The same number everywhere."""
    return Node("number", value=float(value))


def channel(values: np.ndarray) -> Node:
    """Per-channel constant; one that is the same everywhere is a number."""
    values = np.asarray(values, np.float64).ravel()
    return number(values[0]) if (values == values[0]).all() else Node("channel", value=values)


def tensor(index: int, operand: Operand) -> Node:
    """The kernel's tensor number `index`."""
    return Node("tensor", value=(index, operand))


_FOLD = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def apply(op: str, *args: Node) -> Node:
    """A step over nodes, constants folded."""
    if op == "sub":
        return apply("add", args[0], apply("mul", args[1], number(-1.0)))
    if op == "neg":
        return apply("mul", args[0], number(-1.0))
    if op == "div" and args[1].constant:
        return apply("mul", args[0], _constant(1.0 / np.asarray(args[1].value)))
    if op in _FOLD:
        return _commutative(op, *args)
    return Node(op, args)


def _constant(values) -> Node:
    values = np.asarray(values, np.float64)
    return number(values) if values.ndim == 0 else channel(values)


def _commutative(op: str, a: Node, b: Node) -> Node:
    if a.constant and not b.constant:
        a, b = b, a  # constants last
    if a.constant and b.constant:
        return _constant(_FOLD[op](a.value, b.value))
    if b.op == "number" and abs(b.value - {"mul": 1.0, "add": 0.0}.get(op, math.inf)) < NEUTRAL:
        return a
    if b.constant and a.op == op and a.args[1].constant and op in ("mul", "add"):
        return _commutative(op, a.args[0], _constant(_FOLD[op](a.args[1].value, b.value)))
    for one, other in ((a, b), (b, a)):
        if op == "add" and _is_shifted_tensor(other):  # its shift joins the other's bias
            return Node("add", (_commutative("add", one, other.args[1]), other.args[0]))
    return Node(op, (a, b))


def _is_shifted_tensor(node: Node) -> bool:
    """A dequantised tensor whose channels have zero points of their own: tensor * scales + shifts."""
    if node.op != "add" or not node.args[1].constant or node.args[0].op != "mul":
        return False
    return node.args[0].args[0].op == "tensor" and node.args[0].args[1].constant


def uses(root: Node) -> Counter:
    """How often each node is an argument."""
    count: Counter = Counter()
    seen = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for arg in node.args:
            count[id(arg)] += 1
            stack.append(arg)
    return count


def dequantized_tensor(index: int, kind: str, dtype: str, scale, zero_point) -> Node:
    """scale * (q - zero_point) of the kernel's integer tensor number `index`; scale and zero point numbers or [C]."""
    scales, common = _constant(scale), _constant(zero_point)
    if common.op == "number":
        return apply("mul", tensor(index, Operand(kind, dtype, int(common.value))), scales)
    shift = apply("neg", apply("mul", common, scales))
    return apply("add", apply("mul", tensor(index, Operand(kind, dtype)), scales), shift)


def scaled(root: Node, scale) -> Node:
    """root * scale (positive, a number or [C]), pushed towards the leaves where that costs nothing."""
    count, factor = uses(root), _constant(scale)

    def push(node: Node) -> Node:
        if not node.constant and count[id(node)] > 1:
            return apply("mul", node, factor)
        if node.op in ("add", "max", "min"):
            return apply(node.op, *(push(arg) for arg in node.args))
        if node.op == "prelu":
            return apply("prelu", push(node.args[0]), node.args[1])
        if node.op == "mul" and not node.args[1].constant:
            first = node.args[0]
            if first.op == "mul" and first.args[1].constant and count[id(first)] == 1:
                return Node("mul", (push(first), node.args[1]))
        return apply("mul", node, factor)

    return push(root)


def shifted(root: Node, offset) -> Node:
    """root + offset (a number or [C]), pushed through clamps."""
    count, addend = uses(root), _constant(offset)

    def push(node: Node) -> Node:
        if node.op in ("max", "min") and count[id(node)] <= 1:
            return apply(node.op, *(push(arg) for arg in node.args))
        return apply("add", node, addend)

    return push(root)


def split_bias(root: Node) -> tuple[Node, Node | None, Node | None]:
    """Take `acc * scale + bias` apart: (root without the bias, scale, bias); (root, None, None) where there is none.

    Only when the accumulator has no other use; the bias then becomes the accumulators' initial value.
    """
    count = uses(root)
    count[id(root)] += 1
    found: list = []

    def strip(node: Node) -> Node:
        if id(node) in memo:
            return memo[id(node)]
        memo[id(node)] = result = strip_new(node)
        return result

    def strip_new(node: Node) -> Node:
        if node.op == "add" and node.args[1].constant and count[id(ACC)] == 1:
            inner = node.args[0]
            scale = inner.args[1] if inner.op == "mul" and inner.args[0] is ACC and inner.args[1].constant else None
            if inner is ACC or (scale is not None and count[id(inner)] == 1):
                found.append((scale or number(1.0), node.args[1]))
                return inner
        args = tuple(strip(arg) for arg in node.args)
        return node if all(a is b for a, b in zip(args, node.args, strict=True)) else replace(node, args=args)

    memo: dict = {}
    stripped = strip(root)
    return (stripped, *found[0]) if len(found) == 1 else (root, None, None)


def split_clamp(root: Node, bottom: float = -math.inf, top: float = math.inf) -> tuple[Node, float, float]:
    """Peel trailing max / min by numbers off: (root, low, high).

    Also those by channel that change nothing once the result is rounded and clamped to the integers bottom .. top.
    """
    low, high = -math.inf, math.inf
    while root.op in ("max", "min") and root.args[1].constant:
        if root.args[1].op == "channel":
            bounds = root.args[1].value
            if (bounds > bottom + 0.5).any() if root.op == "max" else (bounds < top - 0.5).any():
                break
            root = root.args[0]
            continue
        value = root.args[1].value
        if root.op == "max":
            if value > high:
                break
            low = max(low, value)
        else:
            if value < low:
                break
            high = min(high, value)
        root = root.args[0]
    return root, low, high


def linearize(root: Node, tensors: int) -> tuple[Program, list[np.ndarray], list[int]]:
    """Contract multiply-adds and write the expression down.

    Returns
    -------
    program : Program
    channels : list of float32 [C], one per "channel" operand
    order : list of int
        Which of the `tensors` each tensor operand is; a tensor used twice appears once.
    """
    operands: list[Operand] = []
    channels: list[np.ndarray] = []
    order: list[int] = []
    slots: dict[int, str] = {}
    topological: list[Node] = []

    def visit(node: Node) -> None:
        if id(node) in slots:
            return
        for arg in node.args:
            visit(arg)
        slots[id(node)] = ""
        topological.append(node)

    visit(root)
    for node in topological:
        if node.op == "acc":
            operands.append(Operand("acc"))
        elif node.op == "tensor":
            index, operand = node.value
            assert index < tensors
            operands.append(operand)
            order.append(index)
        elif node.op == "channel":
            operands.append(Operand("channel"))
            channels.append(np.asarray(node.value, np.float32))
        else:
            continue
        slots[id(node)] = f"%{len(operands) - 1}"
    needed = _needed_after_contraction(root)
    steps: list[tuple] = []
    for node in topological:
        if node.op == "number":
            slots[id(node)] = node.value
        elif node.args and id(node) in needed:
            steps.append(tuple(_step(node, slots)))
            slots[id(node)] = f"%{len(operands) + len(steps) - 1}"
    if not steps:  # the result must be the last slot
        index = int(slots[id(root)][1:]) if isinstance(slots[id(root)], str) else None
        if index is None or index != len(operands) - 1:
            steps.append(("add", slots[id(root)], 0.0))
    return Program(tuple(operands), tuple(steps)), channels, order


def _contracted(node: Node) -> Node | None:
    """The product an addition takes in as an fma: every product feeding an addition is contracted, as LLVM would."""
    if node.op == "add":
        for arg in node.args:
            if arg.op == "mul":
                return arg
    return None


def _needed_after_contraction(root: Node) -> set[int]:
    needed: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in needed:
            continue
        needed.add(id(node))
        product = _contracted(node)
        if product is None:
            stack.extend(node.args)
        else:
            stack.extend(product.args)
            stack.append(node.args[0] if node.args[1] is product else node.args[1])
    return needed


def _step(node: Node, slots: dict[int, str]) -> list:
    product = _contracted(node)
    if product is None:
        return [node.op, *(slots[id(arg)] for arg in node.args)]
    other = node.args[0] if node.args[1] is product else node.args[1]
    return ["fma", *(slots[id(arg)] for arg in product.args), slots[id(other)]]


def with_output(root: Node, dtype: str, scale, zero_point) -> tuple[Node, Output]:
    """The expression in units of the output, and how it is stored; trailing clamps are absorbed.

    Scale and zero point are numbers or [C]; zero points that differ are added before rounding instead of behind it.
    """
    if dtype == "float32":
        root, low, high = split_clamp(root)
        return root, Output("float32", 0, low, high)
    info = np.iinfo(dtype)
    root, common = scaled(root, 1.0 / np.asarray(scale, np.float64)), _constant(zero_point)
    if common.op == "channel":
        root, zero_point = shifted(root, zero_point), 0
    else:
        zero_point = int(common.value)
    bottom, top = float(info.min - zero_point), float(info.max - zero_point)
    root, low, high = split_clamp(root, bottom, top)
    return root, Output(dtype, zero_point, min(max(low, bottom), top), max(min(high, top), bottom))

"""RecognizeLrn: local response normalisation, written as arithmetic on shifted channels, becomes one operator.

    s = pad(x * x, channels);  t = s[:, 0 : C] + s[:, 1 : C + 1] + ...;  x / power(t * a + b, beta)
        ->   tvm_int8.lrn(x, size, before, alpha, beta, bias)

Requires   Canonicalize, FoldConstants: constants are on the right and shapes in between are gone.  The frontend writes
           the window's sum in this way, whatever the model had (ONNX LRN, an average pool over channels, ...).
Ensures    what only the normalisation read is gone.
Not        windows that reach further than 16 channels; a base that could be zero (b <= 0 or a < 0); x constant.
Source     Krizhevsky et al. 2012 (ImageNet Classification with Deep Convolutional Neural Networks), section 3.3.
"""

from __future__ import annotations

import tvm

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var, const_value, is_float, op_name, shape_of
from .groups import slice_ranges
from .lrn_op import LARGEST_REACH, lrn


@tvm.transform.module_pass(opt_level=0, name="RecognizeLrn")
class RecognizeLrn:
    """Replace every local response normalisation by the operator."""

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with normalisations recognised."""
        flow = Dataflow(mod)

        def rewrite(binding, _value: Expr, new: Rebuilder) -> Expr | None:
            found = _normalisation(binding.value, flow)
            if found is None:
                return None
            data, size, before, alpha, beta, bias = found
            return lrn(new.translate(data), size, before, alpha, beta, bias)

        return rebuild(mod, rewrite)


def _normalisation(last: Expr, flow: Dataflow) -> tuple[Var, int, int, float, float, float] | None:
    """(data, size, before, alpha, beta, bias) when `last` is one."""
    if op_name(last) != "divide" or len(shape_of(last)) != 4 or not is_float(last) or not isinstance(last.args[0], Var):
        return None
    data = last.args[0]
    base, beta = _power(last.args[1], flow)
    total, factor, bias = _affine(base, flow)
    window = _window(total, data, flow)
    if window is None or beta is None or not (factor >= 0 and bias > 0):
        return None
    size, before = window
    if max(before, size - 1 - before) > LARGEST_REACH:
        return None
    return data, size, before, factor * size, beta, bias


def _power(expr: Expr, flow: Dataflow) -> tuple[Expr, float | None]:
    """(base, exponent) of a power with a constant exponent; (expr, 1) for anything that is no power."""
    call = flow.value(expr)
    if op_name(call) == "power":
        return call.args[0], _number(call.args[1])
    return (call.args[0], 0.5) if op_name(call) == "sqrt" else (expr, 1.0)


def _number(expr: Expr) -> float | None:
    value = const_value(expr)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _affine(expr: Expr, flow: Dataflow) -> tuple[Expr, float, float]:
    """(inner, factor, offset) with expr = factor * inner + offset."""
    factor, offset = 1.0, 0.0
    while op_name(call := flow.value(expr)) in ("add", "multiply"):
        value = _number(call.args[1])
        if value is None:
            break
        if op_name(call) == "add":
            offset += factor * value
        else:
            factor *= value
        expr = call.args[0]
    return expr, factor, offset


def _window(total: Expr, data: Var, flow: Dataflow) -> tuple[int, int] | None:
    """(size, channels before) when `total` is the sum of the squares of `data` over a window of channels."""
    terms, stack = [], [total]
    while stack:
        call = flow.value(stack.pop())
        if op_name(call) == "add":
            stack.extend(call.args)
        else:
            terms.append(call)
    if len(terms) == 1 and _is_square(terms[0], data):
        return 1, 0
    if any(op_name(term) != "strided_slice" or term.args[0] != terms[0].args[0] for term in terms):
        return None
    before = _channels_padded_before(flow.value(terms[0].args[0]), data, flow)
    begins = sorted(_first_channel(term) for term in terms)
    if before is None or begins != list(range(len(terms))) or shape_of(terms[0]) != shape_of(data):
        return None
    return len(terms), before


def _first_channel(term: Expr) -> int:
    """Where a slice of neighbouring channels begins; -1 for other slices."""
    ranges = slice_ranges(term) if len(shape_of(term)) == 4 else None
    begin, step = (ranges or {}).get(1, (-1, 1))
    return begin if ranges is not None and set(ranges) == {1} and step == 1 else -1


def _channels_padded_before(pad: Expr, data: Var, flow: Dataflow) -> int | None:
    """Channels of zeros in front of the squares of `data`; None when `pad` is something else."""
    if op_name(pad) != "nn.pad" or str(pad.attrs.pad_mode) != "constant" or float(pad.attrs.pad_value) != 0:
        return None
    widths = [int(width) for width in pad.attrs.pad_width]
    if any(widths[:2]) or any(widths[4:]) or not _is_square(flow.value(pad.args[0]), data):
        return None
    return widths[2]


def _is_square(call: Expr, data: Var) -> bool:
    name = op_name(call)
    if name == "multiply":
        return call.args[0] == call.args[1] == data
    if name == "power":
        return call.args[0] == data and _number(call.args[1]) == 2
    return name == "square" and call.args[0] == data

"""`tvm_int8.kernel`: the one Relax operator between the quantised graph and the scheduled functions.

    out = tvm_int8.kernel(*inputs, *constants,
                          attrs={"spec": <json>, "tensor": <name>, "constants": ["weight", "bias", "channel", ...]})

Its meaning is `tvm_int8.reference.evaluate(spec, ...)`; its type is given by the attributes `shape` and `dtype`,
because a tensor is logical NCHW before layouts are assigned and physical afterwards.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_int8.own_op import register
from tvm_int8.specs import Spec, from_json

NAME = "tvm_int8.kernel"
OP = register(NAME, "A kernel of tvm_int8, ordered by its spec.")


def kernel_call(
    spec: Spec,
    inputs,
    constants: list[tuple[str, np.ndarray]],
    tensor: str,
    shape,
    stored=None,
) -> relax.Call:
    """Order a kernel.

    Parameters
    ----------
    inputs : the tensors of `spec.inputs`, in order
    constants : (role, array) with roles "weight", "bias", "channel" (repeated, in the order of the program's operands),
        "pad"
    tensor : the name in the float model of what the kernel delivers
    shape : the result's Relax shape
    stored : (scale, zero point) of an integer result, numbers or [C]; None for float32
    """
    attrs = tvm.ir.make_node(
        "ir.DictAttrs",
        spec=spec.to_json(),
        tensor=tensor,
        constants=[role for role, _ in constants],
        shape=[int(s) for s in shape],
        dtype=spec.result.dtype,
        stored=[float(v) for values in stored for v in np.ravel(values)] if stored is not None else [],
    )
    return relax.Call(OP, [*inputs, *(relax.const(np.ascontiguousarray(a), str(a.dtype)) for _, a in constants)], attrs)


def is_kernel(expr) -> bool:
    """Whether an expression orders a kernel."""
    return isinstance(expr, relax.Call) and expr.op == OP


def spec_of(call: relax.Call) -> Spec:
    """What a kernel computes."""
    return from_json(str(call.attrs["spec"]))


def tensor_of(call: relax.Call) -> str:
    """The float model's name of the tensor a kernel delivers."""
    return str(call.attrs["tensor"])


def stored_of(call: relax.Call) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, zero point) of an integer result, each [1] or [C]."""
    values = np.array([float(v) for v in call.attrs["stored"]])
    if not values.size:
        return None
    scale, zero_point = values.reshape(2, -1)
    return scale, zero_point


def inputs_of(call: relax.Call) -> list:
    """The tensors a kernel reads, without its constants."""
    return list(call.args)[: len(call.args) - len(call.attrs["constants"])]


def constants_of(call: relax.Call) -> list[tuple[str, np.ndarray]]:
    """(role, array) of a kernel's constants."""
    roles = [str(r) for r in call.attrs["constants"]]
    arrays = list(call.args)[len(call.args) - len(roles) :]
    return [
        (role, a.value.numpy() if hasattr(a, "value") else a.data.numpy())
        for role, a in zip(roles, arrays, strict=True)
    ]

"""ScheduleKernels: orders become calls of scheduled functions, constants packed as these want them.

    tvm_int8.kernel(x, weight, bias; spec)   ->   call_tir(conv2d_u8s8_avx512vnni_3x3, (x, packed weight, packed bias))

Requires   AssignLayouts.
Ensures    no kernel order is left; kernels that do the same share one function; module attribute `tvm_int8.kernels`
           lists, for every call, what the report and the profile need; `tvm_int8.packed_weights` has the weights that
           an exported library stores at the width they need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm_ffi import structural_equal, structural_hash

from tvm_int8.kernel_op import constants_of, inputs_of, is_kernel, spec_of, stored_of, tensor_of
from tvm_int8.packed_weights import Layout, PackedWeight
from tvm_int8.schedules import amx
from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.knobs import Choice
from tvm_int8.schedules.registry import deliver
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Conv2d, Kernel, Spec
from tvm_int8.unique_names import UniqueNames

from .dataflow import Rebuilder, rebuild
from .expressions import Expr

Choose = Callable[[Spec], Choice | None]
ROWS, PACKED_WEIGHTS = "tvm_int8.kernels", "tvm_int8.packed_weights"


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Deliver every order for `cpu`, as `choose` says: spec -> Choice, or None for the heuristic."""

    def __init__(self, cpu: Cpu, choose: Choose = lambda spec: None):
        self.cpu, self.choose = cpu, choose

    def transform_module(self, mod: tvm.IRModule, _ctx) -> tvm.IRModule:
        """Return the module with scheduled PrimFuncs."""
        delivery = _Delivery(self.cpu, self.choose)
        out = rebuild(mod, delivery)
        for variable, func in delivery.functions.items():
            out.update_func(variable, func)
        packed = {name: tvm.runtime.tensor(np.frombuffer(data, np.uint8)) for name, data in delivery.packed.items()}
        return out.with_attr(ROWS, json.dumps(delivery.rows)).with_attr(PACKED_WEIGHTS, packed)


class _Delivery:
    def __init__(self, cpu: Cpu, choose: Choose):
        self.cpu, self.choose = cpu, choose
        self.functions: dict[tvm.ir.GlobalVar, object] = {}
        self.rows: dict[str, dict] = {}
        self.packed: dict[str, bytes] = {}
        self._known: dict[int, list[tuple[tvm.tirx.PrimFunc, tvm.ir.GlobalVar]]] = {}  # by hash
        self._names = UniqueNames()
        self._may_use_tiles = False
        self._layouts: dict[tuple, Layout] = {}  # by function and shape: padded channels may make one of several
        self._builder = relax.BlockBuilder()  # gives functions the type a call_tir wants to see

    def __call__(self, binding, value: Expr, _new: Rebuilder) -> Expr | None:
        if not is_kernel(value):
            return None
        spec, constants = spec_of(value), Constants.of(constants_of(value))
        kernel = deliver(spec, constants, self.cpu, self.choose(spec))
        variable = self._function(kernel)
        row = _row(spec, kernel, variable.name_hint, tensor_of(value), stored_of(value))
        weight = self._packed_weight(spec, constants, kernel, variable)
        if weight is not None:
            self.packed[binding.var.name] = weight.to_bytes()
            row["weight_bits"] = weight.bits
        self.rows[binding.var.name] = row
        packed = [relax.const(np.ascontiguousarray(c), str(c.dtype)) for c in kernel.constants]
        return relax.call_tir(variable, [*inputs_of(value), *packed], out_ty=binding.var.ty)

    def _function(self, kernel: Kernel) -> tvm.ir.GlobalVar:
        """The function of a kernel: one that is there already, if it does the same."""
        alike = self._known.setdefault(structural_hash(kernel.func), [])
        for func, variable in alike:
            if structural_equal(func, kernel.func):
                return variable
        name = self._names.take(re.sub(r"\W", "_", kernel.name))
        func = kernel.func.with_attr("global_symbol", name)
        if amx.NEEDS_PERMISSION in func.attrs and not self._may_use_tiles:
            func, self._may_use_tiles = amx.with_permission(func), True  # in the first to run: once is enough
        variable = self._builder.add_func(func, name)
        self.functions[variable] = func
        alike.append((kernel.func, variable))
        return variable

    def _packed_weight(self, spec: Spec, constants: Constants, kernel: Kernel, function) -> PackedWeight | None:
        weight, pack = constants.weight, kernel.pack_weight
        if not isinstance(spec, Conv2d) or pack is None or weight is None or weight.dtype != np.int8:
            return None
        key = function, weight.shape, spec.groups
        packed = PackedWeight.of(weight, spec.groups, spec.transposed, pack, self._layouts.get(key))
        if packed is not None:
            self._layouts[key] = packed.layout
        return packed


def _row(spec: Spec, kernel, function: str, tensor: str, stored) -> dict:
    moved = sum(np.prod(t.physical_shape) * np.dtype(t.dtype).itemsize for t in (*spec.inputs, spec.result))
    return {
        "function": function,
        "layer": spec.layer,
        "op": type(spec).__name__,
        "kernel": kernel.name,
        "tensor": tensor,
        "precision": "int8" if spec.inputs[0].dtype in ("uint8", "int8") else "float32",
        "origin": kernel.origin,
        "macs": int(getattr(spec, "macs", 0)),
        "bytes": int(moved + sum(c.nbytes for c in kernel.constants)),
        "result": {"shape": list(spec.result.shape), "dtype": spec.result.dtype, "block": spec.result.block},
        "weight_bits": None,
        "stored": [values.tolist() for values in stored] if stored is not None else None,
    }

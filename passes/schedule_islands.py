"""ScheduleIslands: every TensorIR function that is not a kernel of this package gets loops for threads and vectors.

before   def softmax(x, y): for i, k in grid(1, 1000): with sblock("T_softmax_maxelem"): ...
after    def softmax(x, y): for _ in parallel(1): ... for lane in vectorized(16): ...

Requires   LegalizeOps; kernel orders may be there or not. Functions with the attribute `tvm_int8.kernel` are left alone.
Ensures    chains of islands are one function (FuseOps, FuseTIR); each carries `tvm_int8.island`, or `tvm_int8.unscheduled` with
           the reason why it is still serial. Names of functions are TVM's; names of bindings stay.
Not        dynamic shapes, sorting, scans and scatter: those are `tvm_int8.unscheduled`.
Source     the schedules are `schedules/islands.py`.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.islands import ISLAND, UNSCHEDULED, schedule_island

KERNEL = "tvm_int8.kernel"


@tvm.transform.module_pass(opt_level=0, name="ScheduleIslands")
class ScheduleIslands:
    """Schedule the islands for `cpu`."""

    def __init__(self, cpu: Cpu, fuse: bool = True):
        self.cpu, self.fuse = cpu, fuse

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module without unscheduled functions, or with an attribute on those that are."""
        for variable, func in mod.functions.items():
            if is_island(func):
                mod.update_func(variable, schedule_island(func, variable.name_hint, self.cpu))
        return mod


def is_island(func) -> bool:
    """Whether this pass still has to schedule `func`."""
    done = (KERNEL, ISLAND, UNSCHEDULED)
    return isinstance(func, tirx.PrimFunc) and not (func.attrs and any(name in func.attrs for name in done))

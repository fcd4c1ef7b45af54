"""ScheduleIslands: every TensorIR function that is not a kernel of this package gets loops for threads and vectors.

before   y = call_tir(multiply, (x, a)); z = call_tir(exp, (y,))      serial loops around blocks
after    z = call_tir(multiply_exp, (x, a))                           for ... in parallel: for lane in vectorized(16)

Requires   LegalizeOps and RewriteDataflowReshape; kernel orders may be there or not.
Ensures    an island that feeds only one other island is part of that one's function.  Each function carries
           `tvm_int8.island`, or `tvm_int8.unscheduled` with the reason why it is not vectorised; those with
           `tvm_int8.kernel` are as they were.  Bindings keep their names.
Not        dynamic shapes, sorting, scans and scatter: those are `tvm_int8.unscheduled`.
Source     the schedules are in `schedules/islands.py`.  TVM's FuseOps is not used because it stops at reductions (a
           normalisation would be five functions) and renames what it fuses.
"""

from __future__ import annotations

import re

import tvm
from tvm import relax, tirx

from tvm_int8.schedules.cpu import Cpu
from tvm_int8.schedules.island_program import Step, joined
from tvm_int8.schedules.island_stages import Unsupported, read_stages
from tvm_int8.schedules.islands import ISLAND, UNSCHEDULED, schedule_island, schedule_program
from tvm_int8.unique_names import UniqueNames

from .dataflow import Dataflow, Rebuilder, rebuild
from .expressions import Expr, Var

KERNEL = "tvm_int8.kernel"
_SORT_AND_SCAN = {"relax.sort", "relax.argsort", "relax.topk", "relax.cumsum", "relax.cumprod"}
_LARGEST_GROUP = 24  # functions; TensorIR's passes take time that grows faster than linear
_LONGEST_NAME = 60


@tvm.transform.module_pass(opt_level=0, name="ScheduleIslands")
class ScheduleIslands:
    """Fuse and schedule the islands for `cpu`.

    Parameters
    ----------
    cpu : Cpu
        Registers decide the tiles, threads the number of tasks.
    fuse : bool
        Whether chains of islands become one function.
    """

    def __init__(self, cpu: Cpu, fuse: bool = True):
        self.cpu, self.fuse = cpu, fuse

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with scheduled functions."""
        mod = _dispatched(mod, self.cpu)
        reasons = {variable.name_hint: _reason(func) for variable, func in mod.functions.items() if is_island(func)}
        if not reasons:
            return mod
        flow = Dataflow(mod)
        islands = _Islands(mod, reasons, _groups(flow, reasons, self.fuse), self.cpu)
        out = rebuild(mod, islands)
        called = {binding.value.args[0] for binding in Dataflow(out).bindings if _callee(binding.value)}
        for variable, func in list(out.functions.items()):
            if is_island(func) and variable in called:
                out.update_func(variable, schedule_island(func, variable.name_hint, self.cpu))
            elif is_island(func):
                del out[variable]
        for variable, func in islands.functions.items():
            out.update_func(variable, func)
        return out


def is_island(func) -> bool:
    """Whether this pass has to schedule `func`."""
    return isinstance(func, tirx.PrimFunc) and not any(name in func.attrs for name in (KERNEL, ISLAND, UNSCHEDULED))


def _reason(func: tirx.PrimFunc) -> str | None:
    """Why a function cannot be scheduled; None when it can."""
    try:
        read_stages(func)
    except Unsupported as reason:
        return str(reason)
    return None


def _dispatched(mod: tvm.IRModule, cpu: Cpu) -> tvm.IRModule:
    """Sorting and scans as calls of TVM's own functions, which LegalizeOps leaves to a pass of the target."""
    if not any(getattr(b.value, "op", None) in map(tvm.ir.Op.get, _SORT_AND_SCAN) for b in Dataflow(mod).bindings):
        return mod
    with tvm.target.Target({"kind": "llvm", "mcpu": cpu.name}):
        passes = [relax.backend.DispatchSortScan(), relax.transform.LegalizeOps()]
        return tvm.transform.Sequential(passes)(mod)


def _callee(value: Expr) -> str | None:
    """The TensorIR function a binding calls."""
    if isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_tir"):
        return value.args[0].name_hint
    return None


def _groups(flow: Dataflow, reasons: dict[str, str | None], fuse: bool) -> dict[Var, list[relax.VarBinding]]:
    """The bindings of each function to be, in order, by the variable it delivers.

    A binding joins the group of its consumers when all of them are in one and nothing else needs its value; so no path
    leaves a group and comes back.
    """
    root: dict[Var, Var] = {}
    members: dict[Var, list[relax.VarBinding]] = {}
    for binding in reversed(flow.bindings):
        callee = _callee(binding.value)
        if callee is None or reasons.get(callee, "") is not None:
            continue
        consumers = {root.get(consumer.var) for consumer in flow.consumers[binding.var]}
        home = consumers.pop() if len(consumers) == 1 else None
        joins = fuse and home is not None and not flow.is_output(binding.var) and len(members[home]) < _LARGEST_GROUP
        root[binding.var] = home if joins else binding.var
        members.setdefault(root[binding.var], []).insert(0, binding)
    return members


class _Islands:
    """The rewrite: each group's last binding becomes a call of the group's function; the others die."""

    def __init__(self, mod: tvm.IRModule, reasons, groups, cpu: Cpu):
        self.mod, self.groups, self.cpu = mod, groups, cpu
        self.functions: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
        self._known: dict[tuple, tvm.ir.GlobalVar | None] = {}
        kept = [v.name_hint for v, func in mod.functions.items() if not is_island(func) or reasons[v.name_hint]]
        self._names = UniqueNames(kept)
        self._builder = relax.BlockBuilder()  # gives functions the type a call_tir wants to see

    def __call__(self, binding: relax.VarBinding, value: Expr, new: Rebuilder) -> Expr | None:
        group = self.groups.get(binding.var)
        if group is None:
            return None
        inside = {member.var: number for number, member in enumerate(group)}
        inputs: list[Expr] = []
        steps = []
        for member in group:
            sources = [_source(arg, inside, inputs) for arg in _arguments(member.value)]
            steps.append((_callee(member.value), tuple(sources)))
        key = (tuple(steps), len(inputs))
        if key not in self._known:
            self._known[key] = self._deliver(steps, len(inputs))
        if self._known[key] is None:
            return None
        out = binding.value.ty_args[0]
        types = list(out.fields) if isinstance(out, relax.TupleType) else out
        return relax.call_tir(self._known[key], [new.translate(e) for e in inputs], out_ty=types)

    def _deliver(self, steps, inputs: int) -> tvm.ir.GlobalVar | None:
        """The function of a group; None when its members had better be scheduled one by one."""
        name = _name([callee for callee, _ in steps])
        try:
            program = joined([Step(read_stages(self.mod[callee]), sources) for callee, sources in steps], inputs)
            func = schedule_program(program, name, self.cpu)
        except Exception:  # TVM raises whatever it likes; an island must never stop a compilation
            return None
        name = self._names.take(name)
        func = func.with_attr("global_symbol", name)
        variable = self._builder.add_func(func, name)
        self.functions[variable] = func
        return variable


def _name(callees: list[str]) -> str:
    """`pad_add_power` for pad, add, add1 and tir_power; a single function keeps its name."""
    if len(callees) == 1:
        return callees[0]
    name = "_".join(dict.fromkeys(re.sub(r"^tir_|\d+$", "", callee) for callee in callees))
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME].rpartition("_")[0] + "_etc"


def _arguments(call: relax.Call) -> list[Expr]:
    return list(call.args[1].fields)


def _source(arg: Expr, inside: dict[Var, int], inputs: list[Expr]) -> int:
    """Where an argument comes from: a step of the group (its number), or an input (-1 minus its number)."""
    if isinstance(arg, Var) and arg in inside:
        return inside[arg]
    for number, known in enumerate(inputs):
        if known.same_as(arg):
            return -1 - number
    inputs.append(arg)
    return -len(inputs)

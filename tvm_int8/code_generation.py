"""From scheduled functions to what LLVM's code generator takes: those of TensorIR's last passes that kernels need."""

from __future__ import annotations

import tvm
from tvm import relax, s_tir, tirx
from tvm.tirx import compilation_pipeline

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import vars_in
from tvm_int8.passes.schedule_islands import KERNEL

TENSOR_IR = "tvm_int8"
"""The name under which TVM knows the pipeline of `LowerFunctions`."""
_READS_INPUTS = "tvm_int8.reads_inputs"


@tvm.transform.module_pass(opt_level=0, name="MarkReadersOfInputs")
class MarkReadersOfInputs:
    """Mark the functions that read what the caller passes, or views of it: only these check their arguments."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with marks."""
        flow = Dataflow(mod)
        given, readers = set(flow.params), set()
        for binding in flow.bindings:
            if given.isdisjoint(vars_in(binding.value)):
                continue
            if isinstance(binding.value, relax.Call) and isinstance(binding.value.args[0], tvm.ir.GlobalVar):
                readers.add(binding.value.args[0])
            else:
                given.add(binding.var)
        marked = {variable: mod[variable].with_attr(_READS_INPUTS, True) for variable in readers}
        return tvm.IRModule({**mod.functions, **marked}, attrs=mod.attrs, global_infos=mod.global_infos)


@tvm.transform.module_pass(opt_level=0, name="LowerFunctions")
class LowerFunctions:
    """TensorIR -> what LLVM's code generator takes.

    TVM's own list of passes takes minutes for large networks, nearly all of it to look for blocks, thread axes and
    asynchronous copies. Kernels are explicit loops over flat buffers and need few of them; islands get them all.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with packed functions."""
        kernels, others = _split(mod, KERNEL)
        passes = tirx.transform
        kernels = tvm.transform.Sequential(
            [
                s_tir.transform.LowerOpaqueBlock(),  # loops of one turn go, which would hide the inner ones from LLVM
                passes.StorageRewrite(),  # buffers of scope "local" move out of loops
                passes.UnrollLoop(),
                passes.StmtSimplify(),  # indices: without it LLVM takes twice as long
                passes.VerifyMemory(),
                passes.AnnotateEntryFunc(),
                passes.SplitHostDevice(),
                passes.MakePackedAPI(),
            ]
        )(kernels)
        if others.functions:
            others = compilation_pipeline.get_tir_pipeline("default")[0](others)
        checked, trusted = _split(_merged(kernels, others), _READS_INPUTS)
        # Checks of arguments are two thirds of a network's code, and can fail only where a caller's tensors come in.
        return _merged(checked, passes.SkipAssert()(trusted))


def _split(mod: tvm.IRModule, attribute: str) -> tuple[tvm.IRModule, tvm.IRModule]:
    """The functions with an attribute, and those without."""
    parts: tuple[dict, dict] = {}, {}
    for variable, func in mod.functions_items():
        parts[0 if func.attrs and attribute in func.attrs else 1][variable] = func
    return tvm.IRModule(parts[0], attrs=mod.attrs), tvm.IRModule(parts[1], attrs=mod.attrs)


def _merged(one: tvm.IRModule, other: tvm.IRModule) -> tvm.IRModule:
    return tvm.IRModule({**one.functions, **other.functions}, attrs=one.attrs)


def _code_generation():
    """What `tirx.build` asks of a pipeline: its passes, and the last ones for host and device."""
    return LowerFunctions(), compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(TENSOR_IR, _code_generation)

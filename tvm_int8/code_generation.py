"""From scheduled functions to what LLVM's code generator takes: those of TensorIR's last passes that kernels need."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.tirx import compilation_pipeline

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import vars_in
from tvm_int8.passes.schedule_islands import KERNEL

TENSOR_IR = "tvm_int8"
"""The name under which TVM knows the pipeline of `LowerFunctions`."""
_READS_INPUTS = "tvm_int8.reads_inputs"
ALIGNMENT = 16
"""Bytes to which tensors begin: they may be some of the channel blocks of another one."""
_DATA, _BYTE_OFFSET = 1, 8  # fields of a DLTensor, as `tvm_struct_get` numbers them


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
        functions = tvm.transform.Sequential([HonourByteOffsets()])(_merged(kernels, others))
        checked, trusted = _split(functions, _READS_INPUTS)
        # Checks of arguments are two thirds of a network's code, and can fail only where a caller's tensors come in.
        return _merged(checked, passes.SkipAssert()(trusted))


@tvm.transform.module_pass(opt_level=0, name="HonourByteOffsets")
class HonourByteOffsets:
    """Packed functions take tensors that begin anywhere in their memory, at a multiple of `ALIGNMENT`.

        buffer = decl_buffer(data=tensor.data)     ->     buffer = decl_buffer(data=tensor.data + tensor.byte_offset)

    TVM's own functions demand a byte offset of zero, and addresses that are multiples of 64.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with functions that read byte offsets."""
        rules = [(tirx.DeclBuffer, _with_offset), (tirx.AttrStmt, _with_alignment), (tirx.AssertStmt, _with_any_offset)]
        functions = dict(mod.functions_items())
        for variable, func in functions.items():
            if isinstance(func, tirx.PrimFunc):
                functions[variable] = func.with_body(tvm_ffi.structural_map(func.body, rules))
        return tvm.IRModule(functions, attrs=mod.attrs)


def _tensor_of_field(expr, field: int):
    """The tensor whose `field` an expression reads; None when it is anything else."""
    return expr.args[0] if _calls(expr, "tirx.tvm_struct_get") and int(expr.args[2]) == field else None


def _calls(expr, operator: str) -> bool:
    return isinstance(expr, tvm.ir.Call) and getattr(expr.op, "name", "") == operator


def _with_offset(declaration: tirx.DeclBuffer) -> tirx.DeclBuffer:
    data = declaration.data
    source = data.args[0] if _calls(data, "tirx.reinterpret") else None
    tensor = _tensor_of_field(source, _DATA)
    if tensor is None:
        return declaration
    offset = tirx.tvm_struct_get(tensor, 0, _BYTE_OFFSET, "uint64")
    moved = tvm.ir.Call(data.op, [tirx.handle_add_byte_offset(source, offset)], ret_ty=data.ty)
    return tirx.DeclBuffer(declaration.buffer, data=moved)


def _with_alignment(attribute: tirx.AttrStmt) -> tirx.AttrStmt:
    if attribute.attr_key != "storage_alignment":
        return attribute
    alignment = min(int(attribute.value), ALIGNMENT)
    return tirx.AttrStmt(attribute.node, attribute.attr_key, tirx.const(alignment, "int32"), attribute.body)


def _with_any_offset(check: tirx.AssertStmt) -> tirx.Stmt:
    condition = check.condition
    sides = (condition.a, condition.b) if isinstance(condition, tirx.EQ) else ()
    about_offset = any(_tensor_of_field(side, _BYTE_OFFSET) is not None for side in sides)
    return tirx.Evaluate(0) if about_offset else check


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

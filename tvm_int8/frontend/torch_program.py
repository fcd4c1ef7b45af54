"""Exported PyTorch programs, through TVM's importer, under the names of their modules.

Only this file imports torch, and only when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm

from ..errors import ModelError
from .relax_importer import import_relax


def import_pt2(path: Path, input_shapes: Mapping[str, Sequence[int]]) -> tvm.IRModule:
    """Import a file `torch.export.save` wrote.

    Raises
    ------
    ModelError
        There is no such file, torch is not installed, or the file holds no exported program.
    """
    if not path.is_file():
        raise ModelError(str(path), "no such file", "a .pt2 file", "check the path")
    torch = _import_torch(str(path))
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise ModelError(
            str(path), "holds no exported program", "a file written by torch.export.save", "export the model again"
        ) from error
    return import_torch(program, input_shapes, str(path))


def import_torch(program, input_shapes: Mapping[str, Sequence[int]], where: str = "ExportedProgram") -> tvm.IRModule:
    """Import a `torch.export.ExportedProgram`; its parameters and buffers become constants.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        The program, exported in evaluation mode.
    input_shapes : mapping of str to sequence of int
        Shapes of inputs with dynamic dimensions.
    where : str
        What messages call the program.

    Raises
    ------
    ModelError
        `program` is something else, or uses what TVM's importer or this compiler does not support.
    """
    torch = _import_torch(where)
    if not isinstance(program, torch.export.ExportedProgram):
        kind = f"{type(program).__module__}.{type(program).__qualname__}"
        raise ModelError(
            where,
            f"is a {kind}",
            "a torch.export.ExportedProgram",
            "call torch.export.export(model.eval(), (example,))",
        )
    layer_names: dict[str, str] = {}
    try:
        module = _importer_class(layer_names)().from_exported_program(
            program.run_decompositions(),
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[-1] if lines else type(error).__name__)[:300]
        raise ModelError(
            where, f"cannot be imported ({reason})", "operators TVM's PyTorch importer knows", "or export it to ONNX"
        ) from error
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    return import_relax(module, input_shapes, where=where, layer_names=layer_names, output_names=outputs)


def _import_torch(where: str):
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise ModelError(
            where, "torch is not installed", "torch 2.x", "pip install torch, or export to ONNX"
        ) from error
    return torch


def _importer_class(layer_names: dict[str, str]):
    """TVM's importer, noting for every variable it binds which module of the network it comes from."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    class NamingImporter(ExportedProgramImporter):
        def create_convert_map(self):
            return {name: self._noting(convert) for name, convert in super().create_convert_map().items()}

        @staticmethod
        def _noting(convert):
            def converted(node, *rest):
                result = convert(node, *rest)
                if isinstance(result, tvm.relax.Var):
                    layer_names.setdefault(result.name, _layer_of(node))
                return result

            return converted

    return NamingImporter


def _layer_of(node) -> str:
    """``layer1.0.conv2`` for what one of torch's own modules does, ``layer1.0/add`` for what is between modules."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return node.name
    path, kind = stack[-1]
    path = re.sub(r"^L\['self'\]\.?", "", str(path))
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if path and kind.startswith("torch.nn.modules."):
        return path
    return f"{path}/{node.name}" if path else node.name

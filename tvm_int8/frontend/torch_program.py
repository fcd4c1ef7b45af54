"""Exported PyTorch programs, through TVM's importer, under the names of their modules.

Only this file imports torch, and only when it is needed.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm

from ..errors import ModelError
from .messages import reason_of
from .onnx_file import reject_unknown_names, resolve_shape
from .relax_importer import import_relax
from .torch_quantize import quantization_converters, register_quantization


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
    register_quantization()
    try:
        with _without_warnings():
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
    program = _static(torch, program, input_shapes, where)
    layer_names: dict[str, str] = {}
    try:
        with _without_warnings():
            module = _importer_class(layer_names)().from_exported_program(
                program.run_decompositions(_decompositions(torch)),
                keep_params_as_input=False,
                unwrap_unit_return_tuple=True,
                no_bind_return_tuple=False,
                custom_convert_map=None,
            )
    except Exception as error:
        reason = reason_of(error)
        raise ModelError(
            where, f"cannot be imported ({reason})", "operators TVM's PyTorch importer knows", "or export it to ONNX"
        ) from error
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    return import_relax(module, {}, where=where, layer_names=layer_names, output_names=outputs)


def _static(torch, program, input_shapes, where: str):
    """`program` without dynamic dimensions: exported again for the given shapes when it has some."""
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    given = {name: tuple(shape) for name, shape in input_shapes.items()}
    reject_unknown_names(given, names, where)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    examples, is_dynamic = [], False
    for name in names:
        if not isinstance(values.get(name), torch.Tensor):
            raise ModelError(f"input '{name}'", "is no tensor", "tensors", "export the model with tensor inputs only")
        declared = [dim if isinstance(dim, int) else str(dim) for dim in values[name].shape]
        is_dynamic |= any(isinstance(dim, str) for dim in declared)
        shape = resolve_shape(name, declared, given.get(name))
        examples.append(torch.zeros(shape, dtype=values[name].dtype))
    if not is_dynamic:
        return program
    try:
        with _without_warnings():
            return torch.export.export(program.module(), tuple(examples))
    except Exception as error:
        raise ModelError(
            where, f"does not accept the shapes {[list(e.shape) for e in examples]}", "shapes it was exported for", ""
        ) from error


@contextlib.contextmanager
def _without_warnings():
    """Torch's and TVM's notes about their own internals say nothing about the user's model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_torch(where: str):
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise ModelError(
            where, "torch is not installed", "torch 2.x", "pip install torch, or export to ONNX"
        ) from error
    return torch


# What TVM's importer takes whole; taken apart, these would come back as several operators.
_KEPT_WHOLE = ("prelu", "silu", "selu", "hardswish", "hardsigmoid", "relu6", "softplus", "mish", "linear")


def _decompositions(torch) -> dict:
    table = torch.export.default_decompositions()
    for name in _KEPT_WHOLE:
        table.pop(getattr(torch.ops.aten, name).default, None)
    return table


def _importer_class(layer_names: dict[str, str]):
    """TVM's importer, noting for every variable it binds which module of the network it comes from."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    class NamingImporter(ExportedProgramImporter):
        def create_convert_map(self):
            converters = {**super().create_convert_map(), **quantization_converters(self), "mish.default": self._mish}
            return {name: self._noting(convert) for name, convert in converters.items()}

        def _mish(self, node):
            x = self.env[node.args[0]]
            gate = self.block_builder.emit(tvm.relax.op.nn.softplus(x))
            return self.block_builder.emit(tvm.relax.op.multiply(x, tvm.relax.op.tanh(gate)))

        def _upsample_impl(self, x, size, scale_factor, method, align_corners):
            """Nearest upsampling rounds ``i * old / new`` down in PyTorch."""
            if method != "nearest_neighbor":
                return super()._upsample_impl(x, size, scale_factor, method, align_corners)
            extents = [int(dim) for dim in list(x.ty.shape)[2:]]
            if size is None:
                scales = scale_factor if isinstance(scale_factor, list | tuple) else [scale_factor] * len(extents)
                size = [int(extent * scale) for extent, scale in zip(extents, scales, strict=True)]
            options = {"coordinate_transformation_mode": "asymmetric", "rounding_method": "floor"}
            return self.block_builder.emit(tvm.relax.op.image.resize2d(x, tuple(size), method=method, **options))

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

"""Bring any Relax module (a user's own, or what TVM's PyTorch importer writes) into the canonical form.

Parameters with known values become constants, symbolic shapes are bound, calls of other Relax functions are inlined,
and every binding is written again through the same `Emitter` as an ONNX node, by a rule of `relax_rules` where its
operator has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from ..errors import ModelError, TvmInt8Error
from .context import ImportContext
from .emitter import dtype_of, is_constant, is_relax_call
from .messages import reason_of
from .onnx_file import reject_unknown_names, resolve_shape, supported_dtype
from .relax_fold import evaluate_call
from .relax_rules import RULES
from .values import QuantizedConstant


def import_relax(
    mod: tvm.IRModule,
    input_shapes: Mapping[str, Sequence[int]],
    where: str = "Relax module",
    layer_names: Mapping[str, str] | None = None,
    output_names: Sequence[str] | None = None,
) -> tvm.IRModule:
    """The canonical module of a Relax module.

    Parameters
    ----------
    mod : tvm.IRModule
        One Relax function, or several of which one is ``main``.
    input_shapes : mapping of str to sequence of int
        Shapes of parameters with symbolic dimensions.
    where : str
        What messages call the module.
    layer_names : mapping of str to str, optional
        Names of the layers by variable name; by default the function's own attribute, else the variables' names.
    output_names : sequence of str, optional
        Names of the outputs; by default the function's own attribute, else made up.

    Raises
    ------
    ModelError
        The module has no entry function, is not static, or holds what the canonical form has no place for.
    """
    mod = _to_nchw(mod)
    function = _entry(mod, where)
    given = {name: tuple(shape) for name, shape in input_shapes.items()}
    output_names = output_names or _attribute(function, "output_names", None)
    if layer_names is not None:
        return RelaxImporter(mod, where, layer_names).run(function, given, output_names)
    known = _attribute(function, "layer_names", {})
    return RelaxImporter(mod, where, known, keeps_names=True).run(function, given, output_names)


def _entry(mod: tvm.IRModule, where: str) -> relax.Function:
    functions = {var.name_hint: f for var, f in mod.functions.items() if isinstance(f, relax.Function)}
    if "main" in functions:
        return functions["main"]
    if len(functions) == 1:
        return next(iter(functions.values()))
    found = f"has the functions {sorted(functions)}" if functions else "has no Relax function"
    raise ModelError(where, found, "a function 'main'", "name the entry function main")


def _to_nchw(mod: tvm.IRModule) -> tvm.IRModule:
    """Convert convolutions of other layouts; what is around them follows."""
    layouts = set()

    def visit(expr):
        if is_relax_call(expr) and expr.op.name == "relax.nn.conv2d":
            layouts.add((str(expr.attrs.data_layout), str(expr.attrs.kernel_layout)))

    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    if layouts <= {("NCHW", "OIHW")}:
        return mod
    return relax.transform.ConvertLayout({"relax.nn.conv2d": ["NCHW", "OIHW"]})(relax.transform.Normalize()(mod))


def _attribute(function, name: str, default):
    return function.attrs[name] if function.attrs and name in function.attrs else default


class RelaxImporter(ImportContext):
    """The state of one import.

    Parameters
    ----------
    mod : tvm.IRModule
        Where called functions are looked up.
    where : str
        What messages call the module.
    layer_names : mapping of str to str
        Names of the layers by variable name.
    keeps_names : bool
        Whether variables keep their names, instead of being named after their layer.
    """

    def __init__(self, mod: tvm.IRModule, where: str, layer_names: Mapping[str, str], keeps_names: bool = False):
        super().__init__()
        self.keeps_names = keeps_names
        self.mod, self.where = mod, where
        self.layer_names = {str(name): str(layer) for name, layer in layer_names.items()}
        self._arrays: dict = {}

    def run(self, function: relax.Function, given: Mapping[str, tuple[int, ...]], output_names) -> tvm.IRModule:
        """Import `function` with its symbolic dimensions bound as `given` says."""
        names = [str(name) for name in _attribute(function, "input_names", [var.name for var in function.params])]
        weights = [weight.numpy() for weight in _attribute(function, "params", [])]
        count = len(function.params) - len(weights)
        names = names[:count]
        reject_unknown_names(given, names, self.where)
        function, shapes = _bind_shapes(function, names, given)
        parameters = []
        for var, name, shape in zip(function.params[:count], names, shapes, strict=True):
            dtype = supported_dtype(dtype_of(var), f"input '{name}'")
            parameters.append(self.emitter.parameter(var.name, shape, dtype))
        result = self._run_function(function, [*parameters, *weights])
        outputs = result if isinstance(result, list) else [result]
        default = ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]
        output_names = [str(name) for name in output_names or default]
        exprs = [self.expr(value) for value in outputs]
        return self.emitter.finish(parameters, exprs, names, output_names, is_tuple=isinstance(result, list))

    def _run_function(self, function: relax.Function, arguments: list):
        env = dict(zip(function.params, arguments, strict=True))
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        labels = self._labels(bindings)
        for binding, label in zip(bindings, labels, strict=True):
            self.emitter.begin(label, binding.var.name if self.keeps_names else "")
            env[binding.var] = self._guarded(binding, env, label)
        return self._value(function.body.body, env)

    def _labels(self, bindings) -> list[str]:
        """The layer of every binding: its own, else that of the next binding that has one (a helper of it)."""
        labels, following = [], None
        for binding in reversed(bindings):
            own = self.layer_names.get(binding.var.name)
            following = own or (following if self.layer_names else None)
            labels.append(following or binding.var.name)
        return labels[::-1]

    def _guarded(self, binding, env, label: str):
        try:
            return self._import(binding.value, env)
        except TvmInt8Error:
            raise
        except Exception as error:
            reason = reason_of(error)
            raise ModelError(
                f"'{label}'", f"cannot be imported ({reason})", "", "check that tvm.compile takes it"
            ) from error

    def _import(self, value, env):
        if not isinstance(value, tvm.ir.Call):
            return self._value(value, env)
        if isinstance(value.op, tvm.ir.GlobalVar):
            callee = self.mod[value.op]
            if isinstance(callee, relax.Function):
                return self._run_function(callee, [self._value(arg, env) for arg in value.args])
        if not is_relax_call(value) or value.op.name.startswith("relax.call_"):
            name = value.op.name if is_relax_call(value) else str(value.op)
            raise self.error(f"calls {name}", "Relax operators", "hand in the module before it is lowered to kernels")
        return self._import_call(value, [self._value(arg, env) for arg in value.args])

    def _import_call(self, call, args: list):
        rule = RULES.get(call.op.name.removeprefix("relax."))
        arrays = [field for arg in args for field in (arg if isinstance(arg, list) else [arg]) if _is_tensor(field)]
        if all(isinstance(array, np.ndarray) for array in arrays):
            folded = evaluate_call(call, arrays, self._rebuilt_type(call, args))
            if folded is not None:
                return folded
        if rule is not None:
            result = rule(self, call, *args)
            if result is not None:
                return result
        return self.emit(self.rebuild(call, args))

    def _rebuilt_type(self, call, args):
        return relax.BlockBuilder().normalize(self.rebuild(call, args)).ty

    def rebuild(self, call, args: list) -> relax.Expr:
        """`call` with new arguments (values of this import)."""
        exprs = [relax.Tuple([self.expr(f) for f in arg]) if isinstance(arg, list) else self.expr(arg) for arg in args]
        return relax.Call(call.op, exprs, call.attrs, call.ty_args)

    def _value(self, expr, env):
        """The value of a leaf: a tensor, or a list for a tuple of tensors; anything else as it is."""
        if isinstance(expr, relax.Var):
            return env[expr]
        if is_constant(expr):
            known = self._arrays.get(expr)
            if known is None:
                known = self._arrays[expr] = expr.value.numpy()
            return known
        if isinstance(expr, relax.Tuple) and all(_is_tensor_type(field) for field in expr.fields):
            return [self._value(field, env) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            values = self._value(expr.tuple_value, env)
            return values[expr.index] if isinstance(values, list) else self.emit(relax.TupleGetItem(values, expr.index))
        if isinstance(expr, relax.If | relax.Function | relax.SeqExpr):
            raise self.error(
                f"holds a nested {type(expr).__name__}", "straight-line code", "take the branch before importing"
            )
        return expr

    def error(self, found: str, expected: str = "", action: str = "change the module") -> ModelError:
        """A ModelError about the layer being imported."""
        return ModelError(f"'{self.emitter.layer}'", found, expected, action)


def _is_tensor(value) -> bool:
    return isinstance(value, np.ndarray | QuantizedConstant | relax.Var)


def _is_tensor_type(expr) -> bool:
    return isinstance(expr.ty, relax.TensorType | relax.TupleType)


def _bind_shapes(function: relax.Function, names: Sequence[str], given) -> tuple[relax.Function, list[tuple[int, ...]]]:
    """Replace symbolic dimensions by the given ones; the static shape of every input."""
    bound: dict = {}
    for var, name in zip(function.params, names, strict=False):
        for dim, extent in zip(var.ty.shape or [], given.get(name, ()), strict=False):
            if isinstance(dim, tvm.tirx.Var):
                bound.setdefault(dim, int(extent))
    if bound:
        function = function.bind_symbolic_vars(bound)
    shapes = []
    for var, name in zip(function.params, names, strict=False):
        if not isinstance(var.ty, relax.TensorType):
            raise ModelError(
                f"input '{name}'", f"is a {type(var.ty).__name__}", "a tensor", "change the function's signature"
            )
        declared = None
        if var.ty.shape is not None:
            declared = [int(dim) if isinstance(dim, tvm.tirx.IntImm) else str(dim) for dim in var.ty.shape]
        shapes.append(resolve_shape(name, declared, given.get(name)))
    return function, shapes

"""Build the canonical float module, one named binding at a time.

Both importers (ONNX and Relax/torch) write through an `Emitter`. It keeps the function in A-normal form (every argument
of a call is a variable or a constant), derives each variable's name from the layer that is being imported, remembers
which layer every variable came from, and drops what nothing uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from ..errors import ModelError
from ..unique_names import UniqueNames

_FLOATS_TO_FLOAT32 = {"float16", "float64", "bfloat16"}


def identifier(name: str) -> str:
    """The model's name as a Relax identifier: ``/layer1/conv.0`` -> ``layer1_conv_0``."""
    cleaned = re.sub(r"[^0-9a-zA-Z_]+", "_", name).strip("_")
    if not cleaned:
        return "value"
    return cleaned if not cleaned[0].isdigit() else f"n{cleaned}"


def is_relax_call(expr) -> bool:
    """Whether `expr` is a call of a Relax operator (and not, say, a scalar expression of a shape)."""
    return isinstance(expr, tvm.ir.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name.startswith("relax.")


def is_constant(expr) -> bool:
    """Whether `expr` is a `relax.const`."""
    return isinstance(expr, tvm.ir.GenericConst)


def shape_of(expr) -> tuple[int, ...]:
    """Static shape of a Relax expression."""
    return tuple(int(dim) for dim in expr.ty.shape)


def dtype_of(expr) -> str:
    """Element type of a Relax tensor expression, as a string."""
    return str(expr.ty.dtype)


class Emitter:
    """A-normal-form builder of one Relax function ``main``.

    Attributes
    ----------
    layer : str
        The model's own name of the layer being imported; set by `begin`.
    """

    def __init__(self):
        self.begin("layer")
        self._infer = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []
        self._values: dict[relax.Var, relax.Expr] = {}
        self._layer_of: dict[str, str] = {}
        self._names = UniqueNames()
        self._constants: dict[int, tuple[np.ndarray, relax.Expr]] = {}

    def begin(self, layer: str, variable: str = "") -> None:
        """Name what is emitted from now on after `layer`, and its variables after `variable` when that is given."""
        self.layer, self._base = layer, identifier(variable or layer)

    def parameter(self, name: str, shape: Sequence[int], dtype: str) -> relax.Var:
        """A function parameter named after the model's input `name`."""
        return relax.Var(self._names.take(identifier(name)), relax.TensorType(list(shape), dtype))

    def constant(self, array: np.ndarray) -> relax.Expr:
        """A Relax constant; any floating type becomes float32. One array always gives the same constant."""
        known = self._constants.get(id(array))
        if known is None:
            value = np.asarray(array)
            if str(value.dtype) in _FLOATS_TO_FLOAT32:
                value = value.astype(np.float32)
            # The dtype is given because relax.const would turn int64 into int32.
            known = self._constants[id(array)] = (array, relax.const(value, str(value.dtype)))
        return known[1]

    def emit(self, expr: relax.Expr, suffix: str = "") -> relax.Var:
        """Bind `expr` to a new variable named after the current layer.

        Parameters
        ----------
        expr : relax.Expr
            A call, tuple or tuple item; calls nested in its arguments get bindings of their own.
        suffix : str
            Tells apart the variables of one layer; the value a layer is known by has none.
        """
        expr = self._infer.normalize(self._flatten_arguments(expr))
        var = relax.DataflowVar(self._names.take(f"{self._base}_{suffix}" if suffix else self._base), expr.ty)
        self._bindings.append(relax.VarBinding(var, expr))
        self._values[var] = expr
        self._layer_of[var.name] = self.layer
        return var

    def definition(self, var) -> relax.Expr | None:
        """The expression `var` is bound to, None for parameters and constants."""
        return self._values.get(var) if isinstance(var, relax.Var) else None

    def defined_by(self, var, op_name: str) -> relax.Expr | None:
        """The call `var` is bound to when it is one of ``relax.<op_name>``, else None."""
        value = self.definition(var)
        return value if value is not None and is_relax_call(value) and value.op.name == f"relax.{op_name}" else None

    def _flatten_arguments(self, expr):
        if is_relax_call(expr):
            args = [self._leaf(arg) for arg in expr.args]
            if any(new is not old for new, old in zip(args, expr.args, strict=True)):
                return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        elif isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._leaf(expr.tuple_value), expr.index)
        elif isinstance(expr, relax.Tuple):
            return relax.Tuple([self._leaf(field) for field in expr.fields])
        return expr

    def _leaf(self, arg):
        if is_relax_call(arg) or isinstance(arg, relax.TupleGetItem):
            inner = arg.op.name.rsplit(".", 1)[-1] if is_relax_call(arg) else "item"
            return self.emit(arg, inner)
        if isinstance(arg, relax.Tuple) and any(is_relax_call(field) for field in arg.fields):
            return relax.Tuple([self._leaf(field) for field in arg.fields])
        return arg

    def finish(
        self,
        parameters: Sequence[relax.Var],
        outputs: Sequence[relax.Expr],
        input_names: Iterable[str],
        output_names: Iterable[str],
        is_tuple: bool = False,
    ) -> tvm.IRModule:
        """The module: live bindings in one dataflow block, outputs as a tensor or a tuple of tensors.

        Parameters
        ----------
        parameters, outputs : sequences of relax expressions
            The function's parameters, and the values it returns.
        input_names, output_names : iterables of str
            The model's own names of both, for the function's attributes.
        is_tuple : bool
            Return a tuple even for a single output.

        Raises
        ------
        ModelError
            An output has no elements.
        """
        outputs, output_names = [self._bound(value) for value in outputs], list(output_names)
        for name, value in zip(output_names, outputs, strict=False):
            if 0 in shape_of(value):
                found = f"has no elements (shape {tuple(shape_of(value))})"
                raise ModelError(f"output '{name}'", found, "one or more", "leave it out of the model")
        bindings, results = _as_outputs(self._live(outputs), outputs)
        if len(results) == 1 and not is_tuple:
            body = results[0]
        else:
            body = relax.Var(self._names.take("outputs"), relax.Tuple(results).ty)
            bindings.append(relax.VarBinding(body, relax.Tuple(results)))
        function = relax.Function(
            list(parameters), relax.SeqExpr([relax.DataflowBlock(bindings)], body), body.ty, is_pure=True
        )
        kept = {binding.var.name for binding in bindings}
        attributes = {
            "global_symbol": "main",
            "input_names": [str(name) for name in input_names],
            "output_names": [str(name) for name in output_names],
            "layer_names": {name: layer for name, layer in self._layer_of.items() if name in kept},
        }
        module = tvm.IRModule({"main": function.with_attrs(attributes)})
        return relax.transform.Normalize()(module)

    def _bound(self, value):
        """An output has to be a bound variable: a parameter or a constant returned as it is gets a binding."""
        if isinstance(value, relax.DataflowVar):
            return value
        self.begin("output")
        shape = relax.ShapeExpr(list(shape_of(value)))
        return self.emit(relax.op.reshape(value, shape))

    def _live(self, outputs) -> list[relax.VarBinding]:
        wanted, live = set(outputs), []
        for binding in reversed(self._bindings):
            if binding.var in wanted:
                live.append(binding)
                wanted.update(used_vars(binding.value))
        return live[::-1]


def used_vars(expr) -> list[relax.Var]:
    """Variables a flat expression reads."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, tvm.ir.Call):
        return [var for arg in expr.args for var in used_vars(arg)]
    if isinstance(expr, relax.Tuple):
        return [var for field in expr.fields for var in used_vars(field)]
    if isinstance(expr, relax.TupleGetItem):
        return used_vars(expr.tuple_value)
    return []


def substitute(expr, replacements: Mapping[relax.Var, relax.Expr]):
    """A flat expression with its variables replaced."""
    if isinstance(expr, relax.Var):
        return replacements.get(expr, expr)
    if isinstance(expr, tvm.ir.Call):
        return relax.Call(expr.op, [substitute(arg, replacements) for arg in expr.args], expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple) and any(isinstance(field, relax.Var) for field in expr.fields):
        return relax.Tuple([substitute(field, replacements) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, replacements), expr.index)
    return expr


def _as_outputs(bindings, outputs):
    """Turn the variables that leave the dataflow block from DataflowVar into Var, keeping their names."""
    single = len(outputs) == 1
    leaving = {var: relax.Var(var.name, var.ty) for var in outputs} if single else {}
    rewritten = []
    for binding in bindings:
        var = leaving.get(binding.var, binding.var)
        rewritten.append(relax.VarBinding(var, substitute(binding.value, leaving) if leaving else binding.value))
    return rewritten, [leaving.get(var, var) for var in outputs]

"""The graph, as the passes see it: a read-only view of `main`, and one way to rebuild it.

A canonical module has a single Relax function `main` with one dataflow block: a list of bindings `var = value`. Most
passes are then a question about neighbours ("is this multiply the only consumer of a convolution?") followed by
new values for a few bindings. :class:`Dataflow` answers the first, :func:`rebuild` does the second. Both take time
linear in the number of bindings.

Requires   bindings that are pure and unconditional, with static shapes (other Relax is refused with a ModelError).
Ensures    rebuilt functions have one DataflowBlock; tuples bound to a variable are written out where they are used
           (so `TupleGetItem` of one disappears); dead bindings are gone; variables keep their names; function
           attributes are kept, and a binding a pass adds inherits the `layer_names` entry of the one it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm_ffi import structural_equal

from tvm_int8.errors import ModelError
from tvm_int8.passes.expressions import (
    Expr,
    Var,
    const_value,
    constant,
    dtype_of,
    is_float,
    leaves,
    op_name,
    shape_of,
    substitute,
    vars_in,
)
from tvm_int8.unique_names import UniqueNames

__all__ = [
    "Dataflow",
    "Expr",
    "Rebuilder",
    "Var",
    "const_value",
    "constant",
    "dtype_of",
    "is_float",
    "leaves",
    "op_name",
    "rebuild",
    "shape_of",
    "substitute",
    "vars_in",
]

Rewrite = Callable[[relax.VarBinding, Expr, "Rebuilder"], "Expr | None"]


class Dataflow:
    """Read-only view of a function's bindings and of who produces and consumes each variable.

    Parameters
    ----------
    source : IRModule or relax.Function
        A module (its `main` is viewed) or the function itself.

    Attributes
    ----------
    bindings : list of VarBinding
        In order of execution.
    producer : dict of Var to VarBinding
        The binding that defines a variable; function parameters have none.
    consumers : dict of Var to list of VarBinding
        The bindings that read a variable, once per use (`x * x` is listed twice); being an output is not in here.
    outputs : list of Expr
        What the function returns, tuples flattened.
    """

    def __init__(self, source: tvm.IRModule | relax.Function):
        self.function = source["main"] if isinstance(source, tvm.IRModule) else source
        self.params = list(self.function.params)
        self.bindings = _bindings(self.function)
        self.producer = {binding.var: binding for binding in self.bindings}
        self.consumers: dict[Var, list] = {var: [] for var in (*self.params, *self.producer)}
        for binding in self.bindings:
            for var in vars_in(binding.value):
                self.consumers[var].append(binding)
        self.outputs = list(self._output_leaves(self.function.body.body))
        self._output_vars = {expr for expr in self.outputs if isinstance(expr, Var)}

    def _output_leaves(self, expr: Expr) -> Iterator[Expr]:
        for leaf in leaves(expr):
            value = self.value(leaf)
            if isinstance(value, relax.Tuple):
                yield from self._output_leaves(value)
            else:
                yield leaf

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to; a parameter or anything that is not a variable is returned as it is."""
        binding = self.producer.get(expr) if isinstance(expr, Var) else None
        return expr if binding is None else binding.value

    def is_output(self, var: Var) -> bool:
        """Whether the function returns this variable, alone or inside a tuple."""
        return var in self._output_vars

    def only_consumer(self, var: Var) -> relax.VarBinding | None:
        """The binding that reads a variable, if that is its single use and the variable is not an output."""
        users = self.consumers[var]
        return users[0] if len(users) == 1 and var not in self._output_vars else None


def _bindings(function: relax.Function) -> list[relax.VarBinding]:
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    for binding in bindings:
        if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
            raise ModelError(
                binding.var.name, f"a {type(binding).__name__}", "straight-line code", "inline branches and match_cast"
            )
    return bindings


class Rebuilder:
    """The function under construction, as a `rewrite` callback of :func:`rebuild` meets it."""

    def __init__(self, function: relax.Function):
        self.function = function
        self.old = Dataflow(function)
        self._params = set(function.params)
        self._names = UniqueNames(var.name for var in self.old.consumers)
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []
        self._values: dict[Var, Expr] = {}  # new variable -> its value
        self._replaced: dict[Var, Expr] = {}  # old variable -> what stands for it now
        self._added: dict[str, str] = {}  # name of a variable a pass added -> name of the binding it was made for
        self._origin = ""

    def value(self, expr: Expr) -> Expr:
        """What a variable of the new function is bound to; anything else is returned as it is."""
        return self._values.get(expr, expr) if isinstance(expr, Var) else expr

    def read_once(self, var: Expr) -> bool:
        """Whether a variable carried over from the old function has a single use there, and is not an output."""
        return var in self.old.producer and self.old.only_consumer(var) is not None

    def emit(self, expr: Expr, name: str) -> Expr:
        """Append `name = expr` (made unique) and return the variable; calls nested in `expr` get their own bindings."""
        expr = self._flat(expr, name)
        if not isinstance(expr, relax.Call | relax.TupleGetItem):
            return expr
        var = relax.DataflowVar(self._names.take(name), expr.ty)
        self._added[var.name] = self._origin
        self._append(var, expr)
        return var

    def _append(self, var: Var, value: Expr) -> None:
        self._values[var] = value
        self._bindings.append(relax.VarBinding(var, value))

    def _flat(self, expr: Expr, name: str) -> Expr:
        """`expr` with leaves for operands and its type inferred."""
        if isinstance(expr, relax.Call):
            operands = [self._operand(arg, name) for arg in expr.args]
            if any(new is not old for new, old in zip(operands, expr.args, strict=True)):
                expr = relax.Call(expr.op, operands, expr.attrs, expr.ty_args)
            return self._builder.normalize(expr)
        if isinstance(expr, relax.TupleGetItem):
            source = self._operand(expr.tuple_value, name)
            if isinstance(source, relax.Tuple):
                return source.fields[expr.index]
            return self._builder.normalize(relax.TupleGetItem(source, expr.index))
        return self._operand(expr, name)

    def _operand(self, expr: Expr, name: str) -> Expr:
        if isinstance(expr, relax.Call):
            return self.emit(expr, f"{name}_{op_name(expr).rpartition('.')[2] or 'call'}")
        if isinstance(expr, relax.TupleGetItem):
            return self.emit(expr, f"{name}_{expr.index}")
        if isinstance(expr, relax.Tuple):
            fields = [self._operand(item, name) for item in expr.fields]
            changed = any(new is not old for new, old in zip(fields, expr.fields, strict=True))
            return self._builder.normalize(relax.Tuple(fields) if changed else expr)
        return expr

    def translate(self, expr: Expr) -> Expr:
        """An expression of the old function in terms of the new one."""
        return self._typed(substitute(expr, self._replaced))

    def redirect(self, var: Var, expr: Expr) -> None:
        """From here on, read `expr` (of the new function) wherever the old function reads `var`."""
        self._replaced[var] = expr

    def typed(self, expr: Expr) -> Expr:
        """`expr` with its type inferred; its operands are leaves."""
        return self._typed(expr)

    def _typed(self, expr: Expr) -> Expr:
        return expr if isinstance(expr, Var | GenericConst) else self._builder.normalize(expr)

    def bind(self, binding: relax.VarBinding, rewrite: Rewrite) -> None:
        """Carry one binding over, through the callback."""
        var, self._origin = binding.var, binding.var.name
        value = substitute(binding.value, self._replaced)
        untyped = value is not binding.value
        if untyped and not getattr(rewrite, "changes_types", False):
            value, untyped = self._typed(value), False
        replacement = rewrite(binding, value, self)
        if replacement is not None:
            value = self._flat(replacement, var.name)
        elif untyped:
            value = self._typed(value)
        if not isinstance(value, relax.Call | relax.TupleGetItem) and not self._must_bind(var, value):
            self._replaced[var] = value
            return
        if not structural_equal(var.ty, value.ty):
            new_var = relax.DataflowVar(var.name, value.ty)
            self._replaced[var] = new_var
            var = new_var
        self._append(var, value)

    def _must_bind(self, var: Var, value: Expr) -> bool:
        """A parameter or a constant is returned through a binding, never as it is."""
        return not isinstance(var, relax.DataflowVar) and (isinstance(value, GenericConst) or value in self._params)

    def finish(self) -> relax.Function:
        """The function: live bindings only, outputs as plain variables, everything else as dataflow variables."""
        outputs = substitute(self.function.body.body, self._replaced)
        fixed = []
        for leaf in leaves(outputs):
            if not isinstance(leaf, Var) or leaf in self._params:
                fixed.append(relax.Var(self._names.take("output"), leaf.ty))
                self._append(fixed[-1], leaf)
            else:
                fixed.append(leaf)
        live = self._live(set(fixed))
        swap = {}
        for binding in live:
            var = binding.var
            if isinstance(var, relax.DataflowVar) == (var in fixed):
                swap[var] = (relax.Var if var in fixed else relax.DataflowVar)(var.name, var.ty)
        if swap:
            live = [relax.VarBinding(swap.get(b.var, b.var), self._typed(substitute(b.value, swap))) for b in live]
            fixed = [swap.get(var, var) for var in fixed]
        body = relax.Tuple(fixed) if isinstance(outputs, relax.Tuple) else fixed[0]
        seq = self._builder.normalize(relax.SeqExpr([relax.DataflowBlock(live)], body))
        attrs = _with_layer_names(self.function.attrs, {b.var.name for b in live}, self._added)
        return relax.Function(self.function.params, seq, seq.ty, self.function.is_pure, attrs)

    def _live(self, needed: set) -> list:
        live = []
        for binding in reversed(self._bindings):
            if binding.var in needed:
                live.append(binding)
                needed.update(vars_in(binding.value))
        return live[::-1]


def _with_layer_names(attrs, names: set[str], added: dict[str, str]):
    if attrs is None or "layer_names" not in attrs:
        return attrs
    layer_names = dict(attrs["layer_names"])
    for name, origin in added.items():
        if name in names and origin in layer_names:
            layer_names.setdefault(name, layer_names[origin])
    return tvm.ir.DictAttrs({**dict(attrs.items()), "layer_names": layer_names})


def rebuild(mod: tvm.IRModule, rewrite: Rewrite) -> tvm.IRModule:
    """A module whose `main` has the bindings `rewrite` wants.

    Parameters
    ----------
    mod : IRModule
        Left unchanged.
    rewrite : callable(binding, value, new) -> Expr or None
        Called for every binding in order with the original binding, its value in terms of the new function, and the
        :class:`Rebuilder` (`new.value(var)` looks a new variable up, `new.emit(expr, name)` adds a binding in front).
        None keeps the value. An expression replaces it: calls may be nested, a variable makes the binding an alias.
        A callable with a true attribute `changes_types` gets values whose type is not inferred, because their operands
        may have changed theirs.

    Returns
    -------
    IRModule
        With the same functions, attributes and global infos but for `main`.
    """
    new = Rebuilder(mod["main"])
    for binding in new.old.bindings:
        new.bind(binding, rewrite)
    out = mod.clone()
    out.update_func(mod.get_global_var("main"), new.finish())
    return out

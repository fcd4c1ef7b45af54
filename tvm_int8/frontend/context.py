"""What the handlers of both importers use to read values and to write Relax."""

from __future__ import annotations

import numpy as np
from tvm import relax

from .emitter import Emitter, dtype_of, shape_of
from .values import IntegerValued, QuantizedConstant, Value


class ImportContext:
    """Reads values (`values.Value`) and emits Relax under the name of the layer being imported.

    Attributes
    ----------
    emitter : Emitter
        The function being written.
    lifted : dict of relax.Var to relax.Var
        The [N, C, 1, W] form of [N, C, W] values of networks over 1-D signals.
    """

    def __init__(self):
        self.emitter = Emitter()
        self.lifted: dict[relax.Var, relax.Var] = {}

    def emit(self, expr: relax.Expr, suffix: str = "") -> relax.Var:
        """Bind a Relax expression to a variable named after the current layer."""
        return self.emitter.emit(expr, suffix)

    def expr(self, value: Value) -> relax.Expr:
        """A Relax expression of the dtype the model gives the value."""
        if isinstance(value, QuantizedConstant):
            const = self.emitter.constant
            call = relax.op.dequantize(const(value.q), const(value.scale), const(value.zero_point), value.axis)
            return self.emit(call, "weight")
        if isinstance(value, IntegerValued):
            return self.emit(relax.op.astype(relax.op.round(value.value), "int32"), "int32")
        return self.emitter.constant(value) if isinstance(value, np.ndarray) else value

    def scalar(self, value: float) -> relax.Expr:
        """A float32 scalar constant."""
        return relax.const(float(value), "float32")

    def shape(self, value: Value) -> tuple[int, ...]:
        """Static shape of a value."""
        if isinstance(value, np.ndarray | QuantizedConstant):
            return tuple(value.shape)
        return shape_of(value.value if isinstance(value, IntegerValued) else value)

    def dtype(self, value: Value) -> str:
        """Element type of a value, after every floating type has become float32."""
        if isinstance(value, QuantizedConstant):
            return "float32"
        if isinstance(value, np.ndarray):
            return "float32" if value.dtype.kind == "f" or value.dtype.name == "bfloat16" else value.dtype.name
        return "int32" if isinstance(value, IntegerValued) else dtype_of(value)

    def lift(self, value: Value | None) -> Value | None:
        """The [N, C, 1, W] form of a [N, C, W] value; constants keep broadcasting the same way."""
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            return value if value.ndim < 2 else value.reshape((*value.shape[:-1], 1, value.shape[-1]))
        known = self._lifted_form(value)
        if known is None:
            batch, channels, width = self.shape(value)
            known = self.emit(relax.op.reshape(self.expr(value), (batch, channels, 1, width)), "lifted")
        return known

    def _lifted_form(self, value) -> relax.Var | None:
        """The [N, C, 1, W] variable that `value` is a reshape of, if it is one."""
        known = self.lifted.get(value)
        earlier = self.emitter.defined_by(value, "reshape")
        if known is None and earlier is not None and isinstance(earlier.args[0], relax.Var):
            shape = self.shape(value)
            if len(shape) == 3 and self.shape(earlier.args[0]) == (shape[0], shape[1], 1, shape[2]):
                known = earlier.args[0]
        return known

    def lower_to_signal(self, value: relax.Var) -> relax.Var:
        """The [N, C, W] form of a [N, C, 1, W] value, which is remembered for what follows."""
        batch, channels, _, width = self.shape(value)
        signal = self.emit(relax.op.reshape(value, (batch, channels, width)), "signal")
        self.lifted[signal] = value
        return signal

    def can_lift(self, values) -> bool:
        """Whether an element-wise operator may run on [N, C, 1, W] forms of `values`, at least one of which exists."""
        constants = [value for value in values if isinstance(value, np.ndarray)]
        variables = [value for value in values if value is not None and not isinstance(value, np.ndarray)]
        if any(value.ndim > 3 for value in constants) or not all(isinstance(v, relax.Var) for v in variables):
            return False
        shapes = {self.shape(value) for value in variables}
        return (
            len(shapes) == 1
            and len(next(iter(shapes))) == 3
            and any(self._lifted_form(v) is not None for v in variables)
        )

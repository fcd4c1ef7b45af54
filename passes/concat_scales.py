"""Which tensors are stored in the scale of the concatenation they become part of, so that it only copies, or nothing.

A tensor that nothing but a concatenation reads loses nothing: what its own finer scale would keep is lost in the
concatenation.  Where others read it too, a convolution beside a nested concatenation for example, they read it in the
concatenation's scale, if that adds no more noise for them than it saves the concatenation: without it, that one's part
is rounded twice, in both scales.  So a chain of nested concatenations is rounded once, instead of once per link.  A
pool on the way may change the scale: its kernel does so more cheaply than a copy.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm_int8.quantization.calibration_table import CalibrationTable
from tvm_int8.quantization.range_noise import CLIPPING_WEIGHT
from tvm_int8.quantization.scale_zero_point import covering_zero

from .expressions import Var, op_name
from .groups import CLAMPS, WITH_EPILOGUE
from .quantization_plan import QuantizationPlan, Unit

MOST_NOISE = 2.0
"""A tensor's noise in the concatenation's scale, in units of that in its own: once for both readers is no more then."""
UNCOVERED = 0.02
"""How much of its range a tensor may lose where its distribution is not known."""


def concat_scales(
    plan: QuantizationPlan,
    table: CalibrationTable,
    dtype: str = "uint8",
    symmetric: bool = False,
    plain_convolutions: bool = False,
) -> dict[Var, Var]:
    """Choose for all concatenations of a network.

    Parameters
    ----------
    plan : QuantizationPlan
        Which tensors are integers, and which have the scale of what they are moved from.
    table : CalibrationTable
        The ranges.
    dtype : str
        The integers.
    symmetric : bool
        Whether zero is in the middle of ranges with negative values.
    plain_convolutions : bool
        Leave a convolution's ReLU what it is, a clamp to the smallest integer, which it is not where the concatenation
        has negative values.

    Returns
    -------
    dict of Var to Var
        Tensor -> the concatenation's result whose scale it has; as `QuantizationPlan.source`, before what that says.
    """
    return _Choice(plan, table, dtype, symmetric, plain_convolutions).run()


class _Choice:
    def __init__(self, plan: QuantizationPlan, table: CalibrationTable, dtype: str, symmetric: bool, plain: bool):
        self.plan, self.table, self.dtype, self.symmetric, self.plain = plan, table, dtype, symmetric, plain
        self.producer = {unit.output: unit for unit in plan.units}
        self.readers: dict[Var, list[Unit]] = {}
        for unit in plan.units:
            for var in unit.inputs:
                self.readers.setdefault(var, []).append(unit)
        self.concats = [unit for unit in plan.units if _is_concat(unit) and unit.output in plan.quantized]
        self.source: dict[Var, Var] = {}

    def run(self) -> dict[Var, Var]:
        """Nested concatenations first, outermost before inner ones; then their parts."""
        for unit in reversed(self.concats):
            for outer in self._beside(unit):
                if self._tolerates(unit.output, outer):
                    self.source[unit.output] = outer
                    break
        for unit in self.concats:
            for var in unit.inputs:
                self._adopt(var, self._root(unit.output))
        return self.source

    def _root(self, var: Var) -> Var:
        """The concatenation whose scale a concatenation's result has."""
        return self.source.get(var, var)

    def _beside(self, unit: Unit) -> Iterator[Var]:
        """Scales of later concatenations that read the result of `unit`, or a part of it, too."""
        related = {unit.output, *(self.plan.origin(var) for var in unit.inputs)}
        for other in reversed(self.concats[self.concats.index(unit) + 1 :]):
            if any(self.plan.origin(var) in related for var in other.inputs):
                yield self._root(other.output)

    def _adopt(self, var: Var, scale: Var) -> None:
        """Give a part the concatenation's scale: where it comes from, or else on the way from there."""
        way = [var]
        while way[-1] in self.plan.source:
            way.append(self.plan.source[way[-1]])
        for tensor in reversed(way):
            if tensor in self.source or tensor not in self.producer or not _can_scale(self.producer[tensor]):
                continue
            if self.plain and _ends_in_clamp(self.producer[tensor]) and self.table[scale.name].low < 0:
                continue
            alone = {self._root(u.output) if _is_concat(u) else None for u in self._final_readers(tensor)} == {scale}
            if alone or (tensor == way[-1] and self._tolerates(tensor, scale)):
                self.source[tensor] = scale
                return

    def _final_readers(self, var: Var) -> Iterator[Unit]:
        """Units that read a tensor, through those that only move it."""
        for unit in self.readers.get(var, ()):
            if self.plan.source.get(unit.output) == var and unit.output not in self.source:
                yield from self._final_readers(unit.output)
            else:
                yield unit

    def _tolerates(self, var: Var, scale: Var) -> bool:
        """Whether everyone can read a tensor in another one's scale."""
        own, other = self.table.get(self.plan.origin(var).name), self.table.get(scale.name)
        if own is None or other is None:
            return False
        step, _ = self.table.scale_zero_point(self.plan.origin(var).name, self.dtype, self.symmetric)
        coarser, _ = self.table.scale_zero_point(scale.name, self.dtype, self.symmetric)
        if own.histogram is None:
            lost = max(other.low - own.low, own.high - other.high)
            return coarser**2 <= MOST_NOISE * step**2 and lost <= UNCOVERED * (own.high - own.low)
        noise = step**2 / 12 + CLIPPING_WEIGHT * own.clipping
        low, high = covering_zero(other.low, other.high, self.symmetric)
        shared = coarser**2 / 12 + CLIPPING_WEIGHT * own.histogram.clipping_error(low, high)
        return shared <= MOST_NOISE * noise


def _is_concat(unit: Unit) -> bool:
    return unit.op == "concat" and unit.kind == "carry"


def _ends_in_clamp(unit: Unit) -> bool:
    return unit.kind == "compute" and op_name(unit.group.bindings[-1].value) in CLAMPS


def _can_scale(unit: Unit) -> bool:
    """Whether the unit's kernel can store what it computes in any scale."""
    if unit.kind == "float":
        return True  # a kernel of its own quantises
    return unit.group is not None and (unit.group.anchor is None or unit.op in WITH_EPILOGUE)

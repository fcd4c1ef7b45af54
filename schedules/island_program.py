"""Several legalised functions as one program: what one returns, the next reads as an intermediate result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import TensorLoad, Var

from .island_expressions import Expr, rewrite
from .island_stages import Program, Stage, Write, shape_of


@dataclass(frozen=True)
class Step:
    """A function's stages; for each of its inputs the step that computes it, or -1 - the number of a program input."""

    program: Program
    sources: tuple[int, ...]


def joined(steps: Sequence[Step], inputs: int) -> Program:
    """One program of all steps, of which each but the last has one output; parameters are inputs, then last outputs.

    Steps may be of the same function. Stages must not be shared between them: read a function anew for every call.
    """
    given: list[Var | None] = [None] * inputs
    results: list[Var] = []
    temps: list[Var] = []
    stages: list[Stage] = []
    outputs: tuple[Var, ...] = ()
    for number, step in enumerate(steps):
        params, count = step.program.params, len(step.sources)
        names: dict[Var, Var] = {}
        for param, source in zip(params[:count], step.sources, strict=True):
            if source >= 0:
                names[param] = results[source]
            elif given[-1 - source] is not None:
                names[param] = given[-1 - source]
            elif _is_among(param, given):  # of an earlier step of the same function
                given[-1 - source] = names[param] = _another(param)
            else:
                given[-1 - source] = param
        outputs = params[count:]
        if number < len(steps) - 1:
            (result,) = outputs
            names[result] = _another(result)
            temps.append(names[result])
            results.append(names[result])
        else:
            results.append(outputs[0])
        for temp in step.program.temps:
            if _is_among(temp, temps):
                names[temp] = _another(temp)
            temps.append(names.get(temp, temp))
        stages += [_renamed(stage, names) for stage in step.program.stages]
    return Program((*given, *outputs), temps, stages)


def _is_among(buffer: Var, others: Sequence[Var | None]) -> bool:
    return any(other is not None and buffer.same_as(other) for other in others)


def _another(buffer: Var) -> Var:
    """A buffer of the same shape and type."""
    return tirx.decl_buffer(shape_of(buffer), str(buffer.ty.dtype), str(buffer.name))


def _renamed(stage: Stage, names: dict[Var, Var]) -> Stage:
    """The stage on other buffers of the same shapes."""

    def change(node: Expr) -> Expr | None:
        if isinstance(node, TensorLoad) and node.source in names:
            return tirx.BufferLoad(names[node.source], list(node.indices))
        return None

    def moved(write: Write) -> Write:
        return replace(write, buffer=names.get(write.buffer, write.buffer))

    stage = stage.map(lambda e: rewrite(e, change))
    return replace(stage, writes=tuple(map(moved, stage.writes)), init=tuple(map(moved, stage.init)))

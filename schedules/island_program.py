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

    Stages must not be shared between steps: read a function anew for every call.
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
            elif given[-1 - source] is None:
                given[-1 - source] = param
            else:
                names[param] = given[-1 - source]
        outputs = params[count:]
        if number < len(steps) - 1:
            (result,) = outputs
            temps.append(tirx.decl_buffer(shape_of(result), str(result.ty.dtype), str(result.name)))
            names[result] = temps[-1]
            results.append(temps[-1])
        else:
            results.append(outputs[0])
        temps += step.program.temps
        stages += [_renamed(stage, names) for stage in step.program.stages]
    return Program((*given, *outputs), temps, stages)


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

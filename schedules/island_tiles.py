"""Register tiles of reductions whose lanes are spatial: 6 rows x 4 vectors for a matmul on 32 registers."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.ir import Var

from .cpu import Cpu
from .island_expressions import Expr, i64, loads, stride, uses
from .island_loops import Lanes
from .island_stages import Axis, Stage, cut

_VECTORS = 4


@dataclass
class Tile:
    """Accumulators: `rows` along `axis` (or one) times `vectors` vectors along the lanes' axis."""

    lanes: Lanes | None
    vectors: int = 1
    axis: Axis | None = None
    rows: int = 1

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes that run inside the tile, wholly or in part."""
        return tuple(a for a in (self.axis, self.lanes.axis if self.lanes else None) if a is not None)

    @property
    def width(self) -> int:
        """Lanes of a vector."""
        return self.lanes.lanes if self.lanes else 1

    @property
    def size(self) -> int:
        """Accumulators."""
        return self.rows * self.vectors * self.width

    @property
    def row_tiles(self) -> int:
        """Tiles along `axis`."""
        return self.axis.extent // self.rows if self.axis else 1

    @property
    def column_tiles(self) -> int:
        """Tiles along the lanes' axis."""
        return self._columns(self.lanes).tiles if self.lanes else 1

    def _columns(self, lanes: Lanes) -> Lanes:
        return Lanes(lanes.axis, lanes.lanes * self.vectors)

    def cells(self) -> list[tuple[int, int]]:
        """(row, vector) of every accumulator vector."""
        return [(row, vector) for row in range(self.rows) for vector in range(self.vectors)]

    def offset(self, row: int, vector: int) -> int:
        """Where an accumulator vector starts."""
        return (row * self.vectors + vector) * self.width

    def place(self, row_tile: Expr, column_tile: Expr, row: int, vector: int, lane: Expr) -> dict[Var, Expr]:
        """Values of the tile's axes."""
        values = {}
        if self.axis is not None:
            values[self.axis.var] = row_tile * i64(self.rows) + i64(row)
        if self.lanes is not None:
            values[self.lanes.axis.var] = self._columns(self.lanes).start(column_tile) + i64(vector * self.width) + lane
        return values


def tiles(stage: Stage, lanes: Lanes | None, cpu: Cpu) -> list[tuple[Stage, Tile]]:
    """The register tile; what its rows leave over is a second stage with a smaller one."""
    if lanes is None:
        return [(stage, Tile(None))]
    # Three quarters of the registers hold accumulators; a lane count of 16 takes two registers of 256 bits.
    budget = max(1, cpu.vector_registers * cpu.vector_bits * 3 // (4 * 512 * len(stage.writes)))
    axis = _shared_axis(stage, lanes.axis)
    most = min(_VECTORS if axis else 2 * _VECTORS, lanes.axis.extent // lanes.lanes, budget)
    vectors = min(range(most, 0, -1), key=lambda n: -(-lanes.axis.extent // (n * lanes.lanes)) * n)
    limit = min(budget // vectors, axis.extent) if axis else 1
    if axis is None or limit <= 1:
        return [(stage, Tile(lanes, vectors))]
    rows = max(n for n in range(1, limit + 1) if axis.extent % n == 0)
    if 2 * rows > limit:
        return [(stage, Tile(lanes, vectors, axis, rows))]
    first, second, main, rest = cut(stage, axis, axis.extent - axis.extent % limit)
    return [(first, Tile(lanes, vectors, main, limit)), (second, Tile(lanes, vectors, rest, rest.extent))]


def _shared_axis(stage: Stage, lanes: Axis) -> Axis | None:
    """A spatial axis along which the vectors that are loaded stay the same."""
    vectors = [load.indices[0] for e in stage.expressions() for load in loads(e) if load.source not in stage.written]
    vectors = [index for index in vectors if stride(index, lanes.var) != 0]
    for axis in reversed(stage.spatial):
        if axis is not lanes and vectors and all(not uses(index, [axis.var]) for index in vectors):
            return axis
    return None

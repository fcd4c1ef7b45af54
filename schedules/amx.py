"""The tile vocabulary of Intel AMX: eight registers of 16 rows x 64 bytes, and u8 x s8 products of whole tiles.

`dot(c, a, b)` adds to the int32 tile c[16 rows][16] the products of a[16 rows][64 u8] and b[16][16][4 s8]: row m, lane
n gains the sum over k of a[m][k] * b[k // 4][n][k % 4], 16384 multiply-adds in 16 cycles, exact.  Source: Intel 64 and
IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; LLVM's intrinsics take register numbers as
constants.

The kernel of Linux gives a process the tile registers when it asks for them (`with_permission`).  A thread loads the
shapes of tiles before it uses any, and lets go of the registers after (`tiles`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.tirx.script import builder as T

from .vector import const, store

ROWS = 16
ROW_BYTES = 64
TILE_BYTES = ROWS * ROW_BYTES

NEEDS_PERMISSION = "tvm_int8.amx"
"""Attribute of functions that use tiles."""

_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def with_permission(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, asking the operating system for the tile registers first: once per process is enough, more is harmless.

    It stands in the code, and not in the host program, so that a library works wherever it is loaded.
    """
    arguments = [tirx.const(v, "int64") for v in (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)]
    request = tirx.Evaluate(tirx.call_extern("int64", "syscall", *arguments))
    return func.with_body(tirx.SeqStmt([request, func.body]))


@contextmanager
def tiles() -> Iterator[None]:
    """Code in which all eight registers are tiles of 16 rows x 64 bytes."""
    config = T.alloc_buffer((64,), "uint8", scope="global")
    store(config, 0, const(0, "uint8", 64), 64)
    store(config, 16, T.reinterpret("uint8x16", const(ROW_BYTES, "int16", 8)), 16)
    store(config, 48, const(ROWS, "uint8", 8), 8)
    store(config, 0, tirx.const(1, "uint8"), 1)  # palette 1, the only one
    _call("ldtilecfg", T.address_of(config[0]))
    yield
    _call("tilerelease")


def load_tile(tile: int, buffer, index, row_bytes) -> None:
    """Load 16 rows of 64 bytes, `row_bytes` apart (0: the same row 16 times), from element `index` on."""
    _call("tileloadd64", _register(tile), T.address_of(buffer[index]), T.int64(row_bytes))


def store_tile(tile: int, buffer, index, row_bytes: int = ROW_BYTES) -> None:
    """Store 16 rows of 64 bytes."""
    _call("tilestored64", _register(tile), T.address_of(buffer[index]), T.int64(row_bytes))


def dot(acc: int, data: int, weight: int) -> None:
    """Tile `acc` += u8 tile `data` x s8 tile `weight`."""
    _call("tdpbusd", _register(acc), _register(data), _register(weight))


def _register(tile: int):
    return tirx.const(tile, "int8")


def _call(name: str, *arguments) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))

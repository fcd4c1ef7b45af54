"""The small model of a CPU from which heuristic knobs are derived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cpu:
    """What a schedule may know of the machine.

    vector_registers : architectural vector registers
    vector_bits : width of one
    dot : how four u8 x s8 products are accumulated: "avx512vnni" | "avx512bw" | "avxvnni" | "avx2" (see `dot`)
    amx : whether tiles of u8 x s8 products are there (see `amx`)
    word_instructions : how long `vpdpwssd` takes in units of `vpdpbusd`: on Intel's cores twice as long (measured on
        Sapphire Rapids: 2.6 and 5.2 per ns)
    """

    name: str
    dot: str
    vector_bits: int
    vector_registers: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    threads: int = 1
    amx: bool = False
    word_instructions: float = 2.0

"""The table of Relax operators that have an ONNX form."""

from __future__ import annotations

from collections.abc import Callable

RULES: dict[str, Callable] = {}


def relax_op(*names: str) -> Callable:
    """Register ``rule(out, call)`` for operators; `out` is the `OnnxWriter`, on which the rule emits nodes."""

    def register(rule: Callable) -> Callable:
        for name in names:
            assert name not in RULES
            RULES[name] = rule
        return rule

    return register

"""The table of Relax operators that have an ONNX form."""

from __future__ import annotations

from tvm_int8.rule_table import RuleTable

RULES = RuleTable()
"""Operator -> rule(out, call); `out` is the `OnnxWriter`, on which the rule emits nodes."""
relax_op = RULES.rule_for

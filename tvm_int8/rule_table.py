"""A table of rules by the names of the operators they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Rule = TypeVar("Rule", bound=Callable)


class RuleTable(dict[str, Callable]):
    """Operator -> rule; an operator has one rule.

    >>> table = RuleTable()
    >>> @table.rule_for("relax.add", "relax.subtract")
    ... def elementwise(call): ...
    >>> sorted(table)
    ['relax.add', 'relax.subtract']
    """

    def rule_for(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorate the rule of these operators."""

        def register(rule: Rule) -> Rule:
            for name in names:
                assert name not in self
                self[name] = rule
            return rule

        return register

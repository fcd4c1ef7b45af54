"""Checks of single options, with messages that list what is valid."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from tvm_int8.errors import ConfigError


def check_names(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse unknown names of options, with the most similar known one as a proposal."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(
                where=where,
                found=f"unknown option {name!r}",
                expected="only " + ", ".join(known),
                action=f"did you mean {close[0]!r}?" if close else "remove it",
            )


def check_choice(option: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse what is not one of `choices`, of the same type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise invalid(option, value, "one of " + ", ".join(map(repr, choices)))


def check_bool(option: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise invalid(option, value, "True or False")


def check_number(option: str, value: Any, valid: Callable[[float], bool], expected: str) -> None:
    """Refuse what is not a number, or not a valid one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and valid(value)):
        raise invalid(option, value, expected)


def invalid(option: str, value: Any, expected: str) -> ConfigError:
    """Return the error of an option's value."""
    return ConfigError(f"option {option!r}", repr(value), expected, "choose a valid value or leave the option out")

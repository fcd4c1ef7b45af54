"""One line of a tuning log: what a template took for a workload with some knobs, where and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm_int8.schedules.knobs import Knobs
from tvm_int8.schedules.registry import rule_of

from .workload import Workload

KEPT = 0.98
"""Only what takes less than this share of the heuristic's time is preferred to it."""
_NUMBERS = {"time_us": float, "heuristic_us": float, "version": int, "rounds": int}
_LARGEST = 1e12
_TEXTS = ("template", "target", "cpu", "tvm", "date")


@dataclass(frozen=True)
class Record:
    """A measured candidate.

    Parameters
    ----------
    workload : Workload
    template, version : str, int
        The schedule and its version.
    knobs : dict
        What the schedule was built with.
    target : str
        LLVM's name of the CPU the code was compiled for.
    time_us, heuristic_us : float
        Median times of this candidate and of what is built without tuning, taken in turns in one process; infinite
        where the candidate failed.
    rounds : int
        Turns in which both were timed; a final comparison takes more of them than a trial.
    final : bool
        Whether this is what the search ended with for the workload, compared once more with the heuristic.
    error : str
        Why the candidate failed; "" if it computed the right result.
    cpu, tvm, date : str
        The machine that measured, the TVM that compiled, the day.
    """

    workload: Workload
    template: str
    version: int
    knobs: Knobs
    target: str
    time_us: float
    heuristic_us: float
    rounds: int = 1
    final: bool = False
    error: str = ""
    cpu: str = ""
    tvm: str = ""
    date: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ratio(self) -> float:
        """Time relative to the heuristic's."""
        return self.time_us / self.heuristic_us

    @property
    def key(self) -> tuple[Workload, str]:
        """What a record answers for: a workload on a target."""
        return self.workload, self.target

    @property
    def point(self) -> tuple[str, str]:
        """Which candidate of its workload this is."""
        return self.template, json.dumps(self.knobs, sort_keys=True)

    def to_json(self) -> str:
        """Return the line, without its end."""
        fields: dict[str, Any] = {"workload": self.workload.to_dict(), "target": self.target}
        fields |= {"template": self.template, "version": self.version, "knobs": self.knobs}
        if self.error:
            fields["error"] = self.error
        else:
            fields |= {"time_us": _rounded(self.time_us), "heuristic_us": _rounded(self.heuristic_us)}
            fields["rounds"] = self.rounds
        if self.final:
            fields["final"] = True
        fields |= {"cpu": self.cpu, "tvm": self.tvm, "date": self.date, **self.extra}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read a line.

        Raises
        ------
        ValueError
            The line is no record, or one of a template or version that is gone; the message says why.
        """
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise ValueError("not JSON (nested too deeply)") from None
        if not isinstance(fields, dict) or "workload" not in fields or "template" not in fields:
            raise ValueError("not a record of this project: no workload and template in it")
        fields = dict(fields)
        failed = bool(fields.get("error"))
        if failed:
            fields = {**fields, "time_us": 1.0, "heuristic_us": 1.0, "rounds": 1}
        fields.setdefault("rounds", 1)
        for name in (*_NUMBERS, *_TEXTS, "knobs"):
            if name not in fields:
                raise ValueError(f"field {name!r} is missing")
        values: dict[str, Any] = {"workload": Workload.from_dict(fields.pop("workload"))}
        for name, kind in _NUMBERS.items():
            value = fields.pop(name)
            accepted = isinstance(value, int | float) if kind is float else isinstance(value, int)
            if not accepted or isinstance(value, bool) or not (name == "version" or 0 < value <= _LARGEST):
                raise ValueError(f"{name} is {repr(value)[:40]}, expected a positive number")
            values[name] = kind(value)
        for name in _TEXTS:
            values[name] = fields.pop(name)
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is {values[name]!r}, expected text")
        values["knobs"] = fields.pop("knobs")
        if not isinstance(values["knobs"], dict):
            raise ValueError(f"knobs are {values['knobs']!r}, expected an object")
        rule = rule_of(values["template"])
        if rule is None:
            raise ValueError(f"no template is called {values['template']!r}")
        if rule.version != values["version"]:
            raise ValueError(
                f"version {values['version']} of template {values['template']}, which is at {rule.version}: tune again"
            )
        final, failure = fields.pop("final", False), fields.pop("error", "")
        if not isinstance(final, bool) or not isinstance(failure, str):
            raise ValueError(f"final is {final!r} and error {failure!r}, expected true or false, and text")
        if failed:
            values |= {"time_us": float("inf"), "rounds": 0}
        return cls(**values, final=final, error=failure, extra=fields)

    def rank(self) -> tuple[bool, bool, float]:
        """Sort key: the record that counts for its workload comes first."""
        return bool(self.error), not self.final, self.ratio


def _rounded(time_us: float) -> float:
    """Four significant digits are more than a measurement has."""
    return float(f"{time_us:.4g}")

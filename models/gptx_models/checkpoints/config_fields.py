"""The fields of one config.json, read with a check of type and range.

Problems are collected, so that one error names all of them. Knows no model family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptx.artifact.bounds import size_problem
from gptx_models.gpt.config import number_problem

_TYPE_NAMES = {bool: "true or false", int: "a whole number", str: "a name", dict: "an object"}


class ConfigFields:
    """A parsed config.json. `problems` has a text for each field that cannot be used."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def required_size(self, name: str, alias: str = "") -> int:
        """A whole number above 0 that must be there, as the field `name` or as `alias`.

        Returns 1 if there is a problem.
        """
        names = [each for each in (name, alias) if self.raw.get(each) is not None]
        if not names:
            self.problems.append(f"the field {name} is missing")
        values = [self.size(each, 1) for each in names]
        if len(set(values)) > 1:
            self.problems.append(
                f"{name} is {values[0]} and {alias} is {values[1]}: two names of one field"
            )
        return values[0] if values else 1

    def get(self, name: str, default: Any) -> Any:
        """The value of a field, or `default` if the field is absent or null.

        A value of another type than the default's is a problem; then `default` is returned.
        """
        value = self.raw.get(name)
        if value is None:
            return default
        fits = isinstance(value, type(default)) and (
            isinstance(default, bool) or not isinstance(value, bool)
        )
        if not fits:
            self.problems.append(f"{name} is {value!r:.80}, expected {_TYPE_NAMES[type(default)]}")
        return value if fits else default

    def size(self, name: str, default: int) -> int:
        """A whole number above 0. `default`, which may be 0, if the field is absent or null."""
        value = self.raw.get(name)
        problem = size_problem(name, value) if value is not None else None
        return default if value is None or self._add(problem) else value

    def number(self, name: str, default: float, *, high: float | None = None) -> float:
        """A number from 0 to `high`, or `default` if the field is absent or null."""
        value = self.raw.get(name)
        problem = number_problem(name, value, low=0.0, high=high) if value is not None else None
        return default if value is None or self._add(problem) else float(value)

    def expect(self, name: str, expected: bool, *, null_is_default: bool = True) -> None:
        """Add a problem unless a true-or-false field has the only value that our GPT computes.

        expected: that value, also transformers' default for an absent field. null_is_default: true
        if null means the same as an absent field. If false, null is a problem, because transformers
        reads it as false.
        """
        is_null = name in self.raw and self.raw[name] is None
        found = None if is_null and not null_is_default else self.get(name, expected)
        if found != expected:
            self.problems.append(
                f"{name} is {found!r:.80}, and gptx's GPT computes only {expected!r}"
            )

    def choice(self, name: str, default: str, choices: Mapping[str, str]) -> str:
        """The entry of `choices` for a field's value; empty if the value is not among them."""
        found = self.get(name, default)
        if found not in choices:
            self.problems.append(f"{name} is {found!r:.80}, expected one of {', '.join(choices)}")
        return choices.get(found, "")

    def _add(self, problem: str | None) -> bool:
        """Add a problem, if there is one. Returns whether there was."""
        self.problems += [problem] if problem else []
        return problem is not None

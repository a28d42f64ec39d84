"""Check the table of a recipe before a Recipe is made of it: names, types, allowed values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptx.errors import UsageError, shown
from gptx.generation.generation_config import FIELDS
from gptx.generation.resolve_options import FROM_FILE, resolve

Kind = type | tuple[str, ...]  # the type of a setting, or the words to choose from


def recipe_problems(
    table: dict[str, Any],
    fields: Sequence[dataclasses.Field[Any]],
    settings: Mapping[str, tuple[Kind, str]],
) -> Iterator[str]:
    """A sentence for each thing that is wrong; none if `table` makes a Recipe.

    fields: the dataclass fields of Recipe. settings: the result of recipe.settings().
    """
    known = {f.name for f in fields}
    if unknown := sorted(set(table) - known):
        yield f"unknown: {', '.join(unknown)} (known settings: {', '.join(sorted(known))})"
    yield from (f"missing: {key}" for key in ("model", "steps") if key not in table)
    yield from _table_problems("model", table.get("model", {}))
    yield from _table_problems("generation", table.get("generation", {}))
    allowed = {f.name: f.metadata["allowed"] for f in fields if f.metadata}
    for key, (kind, _) in settings.items():
        if key in table and (expected := _expected_instead(table[key], kind, allowed[key])):
            yield f"{key} is {shown(table[key])}, expected {expected}"


def _expected_instead(value: Any, kind: Kind, allowed: Any) -> str | None:
    """A description of the values that a setting may have; None if `value` is one of them.

    allowed: for a number, recipe.Allowed: a check, and the allowed numbers in words.
    """
    if isinstance(kind, tuple):
        return None if value in kind else f"one of {', '.join(kind)}"
    if kind is int or kind is float:
        types = int if kind is int else (int, float)
        check, words = allowed
        is_number = isinstance(value, types) and not isinstance(value, bool)
        return None if is_number and check(value) else words
    if isinstance(value, kind):
        return None
    return "true or false" if kind is bool else "a text"


def _table_problems(name: str, table: Any) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f"{name} is {shown(table)}, expected a table"
    elif reason := _not_json(table):
        yield f"[{name}] holds what JSON cannot hold: {reason}"
    elif name == "generation":
        yield from _generation_problems(table)


def _not_json(table: dict[str, Any]) -> str | None:
    """Why a table cannot be written as JSON; None if it can.

    A TOML table may hold dates and infinity, and JSON has neither.
    """
    try:
        json.dumps(table, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _generation_problems(generation: dict[str, Any]) -> Iterator[str]:
    """A sentence for unknown generation fields, and one for a value that gptx refuses."""
    if unknown := sorted(set(generation) - set(FIELDS)):
        names = ", ".join(f"generation.{name}" for name in unknown)
        yield f"{names}: no such field in generation_config.json"
    try:
        resolve({}, generation, max_new_tokens=1)
    except UsageError as error:
        yield f"[generation]: {str(error).replace(FROM_FILE, '')}"

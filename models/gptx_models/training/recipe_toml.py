"""TOML for recipes: parse a file, parse a --set option, merge tables, write a file."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

from gptx.errors import UsageError

_MAY_BE_NONE = ("model.window", "model.rope_scaling")  # settings without a value: TOML has no null


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The table of a TOML text. Raises UsageError. what: names the text in the error's message."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also for an integer of thousands of digits
        raise UsageError(f"{what} is not TOML: {error}") from error
    except RecursionError:
        raise UsageError(f"{what} is not TOML that can be read: brackets nest too deep") from None


def parse_change(text: str) -> dict[str, Any]:
    """NAME=VALUE as a table: "model.n_layer=6" -> {"model": {"n_layer": 6}}.

    VALUE is TOML, or what people type: a text without quotes, True, .5, none. Raises UsageError.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value or value[0] in "[{\"'" or not re.fullmatch(r"\w+(\.\w+)*", name):
            raise UsageError(
                f"--set {text} is not NAME=VALUE, such as model.n_layer=6 or model.norm=rmsnorm"
            ) from None
        table: Any = _typed_value(name, value)
        for part in reversed(name.split(".")):
            table = {part: table}
        return table


def _typed_value(name: str, value: str) -> Any:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.lower() == "none" and name in _MAY_BE_NONE:
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def merge_tables(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with the values of `changes`; tables in both are merged, all else is replaced."""
    merged = {
        key: merge_tables(table[key], new)
        for key, new in changes.items()
        if isinstance(table.get(key), dict) and isinstance(new, dict)
    }
    return {**table, **changes, **merged}


def to_toml(values: dict[str, Any], tables: dict[str, dict[str, Any]]) -> str:
    """A TOML text: the values, then the tables without their fields of None."""
    lines = [f"{name} = {_value(value)}" for name, value in values.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if value == math.inf:
        return "inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)

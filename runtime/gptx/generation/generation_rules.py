"""The rules of generation_config.json: fields that gptx obeys and that no call can give.

`read_rules` turns the file's values into `Rules`, as transformers reads them. This file knows
neither models nor text.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptx.generation.option_kinds import LARGEST_FLOAT, SMALLEST_FLOAT


@dataclass(frozen=True)
class Rules:
    """The rules of generation_config.json, by transformers' names. The defaults change nothing.

    max_length and min_length count the tokens of prompt and text together.
    """

    max_length: int | None = None
    min_length: int = 0
    encoder_no_repeat_ngram_size: int = 0
    encoder_repetition_penalty: float = 1.0


NO_RULES = Rules()


def read_rules(generation: Mapping[str, Any]) -> tuple[Rules, list[str]]:
    """The rules of a generation_config.json, and a sentence for each field with a wrong value."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, (read, expected) in _READERS.items():
        value = generation.get(name)
        if value is None:
            continue
        try:
            values[name] = read(value)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name} is {value!r:.80}, expected {expected}")
    return Rules(**values), problems


def without_fraction(value: Any) -> Any:
    """Turn 3.0 into 3, in lists too; return any other value unchanged.

    Some programs write whole numbers in JSON as 3.0, and transformers accepts them as lengths.
    """
    if isinstance(value, list | tuple):
        return [without_fraction(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(without_fraction(value))


def _count(value: Any) -> int:
    return max(_integer(value), 0)  # transformers reads a negative number as 0


def _penalty(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError
    number = float(value)
    if not SMALLEST_FLOAT <= number <= LARGEST_FLOAT:
        raise ValueError
    return number


# For each rule, the function that reads its value, and the expected value in words
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "max_length": (lambda value: max(_integer(value), 1), "a number of tokens"),
    "min_length": (_count, "a number of tokens"),
    "encoder_no_repeat_ngram_size": (_count, "a number of tokens"),
    "encoder_repetition_penalty": (_penalty, "a number over 0"),
}

"""Check a caller's arguments: counts, lists of token ids, texts.

A value of any type in; a plain Python value out, or an error that says what was expected.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from gptx.errors import PromptError, UsageError, shown


def integer(value: Any) -> int | None:
    """The value as an int if it is an integer (numpy's too), else None. A bool gives None."""
    try:
        # torch accepts a tensor with one element as an index, also if it has dimensions
        several = isinstance(value, bool) or getattr(value, "ndim", 0)
        return None if several else operator.index(value)
    except Exception:  # the value's own __index__ may raise anything
        return None


def is_list(value: Any) -> bool:
    """True for a list, tuple, range, array or another sequence; False for a text or bytes."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        return False
    try:
        return len(value) >= 0 and hasattr(value, "__getitem__")
    except Exception:  # len() fails for an array of no dimensions, and for range(10**30)
        return False


def count(name: str, value: Any, expected: str, most: int | None = None) -> int:
    """The value as an int from 1 to `most`. Raises UsageError.

    most: None for no limit. name, expected: the argument and the values that it may have, in words
    for the message.
    """
    number = integer(value)
    if number is None or number < 1 or (most is not None and number > most):
        raise UsageError(f"{name} is {shown(value)}, expected {expected}")
    return number


def token_ids(name: str, value: Any, vocab_size: int) -> list[int]:
    """The value as a list of token ids below `vocab_size`. Raises PromptError.

    name: what the message calls the list.
    """
    if not is_list(value):
        raise PromptError(f"{name} is {shown(value)}, expected a list of token ids")
    ids = []
    for token in value:
        number = integer(token)
        if number is None:
            raise PromptError(
                f"{name} holds {shown(token)}, expected token ids, which are integers"
            )
        if not 0 <= number < vocab_size:
            raise PromptError(
                f"{name}: token id {shown(number)} is outside the model's vocabulary: "
                f"0 to {vocab_size - 1}"
            )
        ids.append(number)
    return ids


def text(name: str, value: Any) -> str:
    """The value itself. Raises PromptError if it is not a str."""
    if not isinstance(value, str):
        raise PromptError(f"{name} is {shown(value)}, expected a text")
    return value


def rows_of(name: str, value: Any, rows: int) -> Sequence[Any]:
    """The value itself. Raises UsageError if it is not a list of `rows` entries."""
    if not is_list(value):
        raise UsageError(
            f"{name} got {shown(value)}, expected a list with an entry for each of the {rows} rows"
        )
    if len(value) != rows:
        raise UsageError(f"{name} got {len(value)} rows, and the session has {rows}")
    return value

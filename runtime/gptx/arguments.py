"""Arguments that are counts or lists of integers: a caller's value in, plain integers out, or a sentence that says what
was expected. Knows nothing of models."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from gptx.errors import PromptError, UsageError, shown


def integer(value: Any) -> int | None:
    """The value as an int where it is an integer (numpy's too), else None. True and False are none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def is_list(value: Any) -> bool:
    """Whether this is a sequence of things: a list, a tuple, a range, an array; not a text, and not bytes."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        return False
    try:
        return len(value) >= 0 and hasattr(value, "__getitem__")
    except TypeError:  # an array of no dimensions has __len__, and no length
        return False


def count(name: str, value: Any, expected: str, most: int | None = None) -> int:
    """An integer from 1 to `most`. Raises UsageError."""
    number = integer(value)
    if number is None or number < 1 or (most is not None and number > most):
        raise UsageError(f"{name} is {shown(value)}, expected {expected}")
    return number


def token_ids(name: str, value: Any, vocab_size: int) -> list[int]:
    """Token ids of a vocabulary. `name`: what to call the list. Raises PromptError."""
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
                f"{name}: token id {shown(number)} is outside the model's vocabulary: 0 to {vocab_size - 1}"
            )
        ids.append(number)
    return ids


def text(name: str, value: Any) -> str:
    """Raises PromptError."""
    if not isinstance(value, str):
        raise PromptError(f"{name} is {shown(value)}, expected a text")
    return value


def rows_of(name: str, value: Any, rows: int) -> Sequence[Any]:
    """A list with an entry for each row of a session. Raises UsageError."""
    if not is_list(value):
        raise UsageError(
            f"{name} got {shown(value)}, expected a list with an entry for each of the {rows} rows"
        )
    if len(value) != rows:
        raise UsageError(f"{name} got {len(value)} rows, and the session has {rows}")
    return value

"""The kinds of option values: which values are allowed, and which Python type stores them.

A kind checks a single value. It knows neither the option's name nor other options.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, SupportsIndex, TypeGuard

from gptx.arguments import integer, is_list

MOST_STOP_TOKENS = 1 << 20  # more than any vocabulary has


@dataclass(frozen=True)
class Kind:
    """One kind of option value.

    expected: the allowed values in words, for error messages: "0 or more".
    accepts: whether a value is allowed.
    convert: the stored form of an allowed value, for instance int(5) for numpy.int64(5).
    shell: the type that the command line reads: int, float or str.
    """

    expected: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any]
    shell: type


def whole_number(expected: str, *, lowest: int, highest: float = math.inf) -> Kind:
    """Whole numbers from `lowest` to `highest`: int and numpy's integers, but not bool."""

    def accepts(value: Any) -> bool:
        return is_index(value) and lowest <= operator.index(value) <= highest

    return Kind(expected, accepts, operator.index, int)


def number(expected: str, *, lowest: float, highest: float) -> Kind:
    """Real numbers from `lowest` to `highest`."""

    def accepts(value: Any) -> bool:
        return is_number(value) and lowest <= float(value) <= highest

    return Kind(expected, accepts, float, float)


def _are_texts(value: Any) -> bool:
    return is_list(value) and all(isinstance(text, str) and text for text in value)


def _are_token_ids(value: Any) -> bool:
    return is_list(value) and len(value) <= MOST_STOP_TOKENS and all(map(is_index, value))


TEXTS = Kind("texts that are not empty", _are_texts, tuple, str)
TOKEN_IDS = Kind("token ids", _are_token_ids, lambda ids: tuple(map(operator.index, ids)), int)


def is_number(value: Any) -> bool:
    """Whether a value is a real number that a float can hold, infinity included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def is_index(value: Any) -> TypeGuard[SupportsIndex]:
    """Whether a value is a whole number: an int or one of numpy's, but not a bool."""
    return integer(value) is not None

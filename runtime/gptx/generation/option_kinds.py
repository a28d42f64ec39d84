"""The kinds of option values: which values are allowed, and which Python type stores them.

A kind checks a single value. It knows neither the option's name nor other options.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, SupportsIndex, TypeGuard

from gptx.arguments import integer, is_list

SMALLEST_FLOAT = 5e-324
LARGEST_FLOAT = 1.7e308
# Each bias and factor of logits is limited to this. All of them together then leave a logit that is
# finite in float32, even divided by the lowest temperature.
LARGEST_CHANGE = 1e7
LONGEST_LIST = 1 << 20  # more entries than any vocabulary has

TokenIds = tuple[int, ...]
Biases = tuple[tuple[TokenIds, float], ...]  # (sequence of tokens, bias) pairs


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


def _read_by(expected: str, read: Callable[[Any], Any], shell: type = int) -> Kind:
    """The values that `read` turns into their stored form without a ValueError."""

    def accepts(value: Any) -> bool:
        try:
            read(value)
        except ValueError:
            return False
        return True

    return Kind(expected, accepts, read, shell)


def _list(value: Any) -> list[Any]:
    if not is_list(value) or len(value) > LONGEST_LIST:
        raise ValueError
    return list(value)


def _number(value: Any, lowest: float = -LARGEST_FLOAT) -> float:
    if not is_number(value) or not lowest <= float(value) <= LARGEST_FLOAT:
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _any_id(value: Any) -> int:
    token = integer(value)
    if token is None:
        raise ValueError
    return token


def _id(value: Any) -> int:
    token = _any_id(value)
    if token < 0:
        raise ValueError
    return token


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(text) for text in _list(value))


def _word(value: Any) -> TokenIds:
    word = tuple(_id(token) for token in _list(value))
    if not word:
        raise ValueError
    return word


def _bias(value: Any) -> float:
    return _number(value, lowest=-math.inf)


def _pairs(value: Any) -> Iterable[Any]:
    return value.items() if isinstance(value, Mapping) else map(_list, _list(value))


def _sequence_bias(value: Any) -> Biases:
    # Of two biases for the same sequence, the last one holds, as in transformers.
    return tuple({_word(word): _bias(bias) for word, bias in _pairs(value)}.items())


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    # In JSON, the keys of a mapping are texts.
    return tuple(
        {
            int(key) if isinstance(key, str) and key.isdecimal() else _id(key): _bias(bias)
            for key, bias in _pairs(value)
        }.items()
    )


def _ids_or_one(value: Any) -> TokenIds:
    return tuple(_id(token) for token in _list(value)) if is_list(value) else (_id(value),)


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _list(value)
    return _any_id(start), _number(factor, lowest=0)


def _breakers(value: Any) -> tuple[str | TokenIds, ...]:
    return tuple(_text(one) if isinstance(one, str) else _word(one) for one in _list(value))


TEXTS = _read_by("texts that are not empty", _texts, str)
TOKEN_ID = whole_number("a token id", lowest=0)
TOKEN_IDS = _read_by("a list of token ids", lambda value: tuple(map(_any_id, _list(value))))
TOKEN_IDS_OR_ONE = _read_by("a token id or a list of them", _ids_or_one)
SEQUENCES = _read_by("a list of lists of token ids", lambda value: tuple(map(_word, _list(value))))
SEQUENCE_BIAS = _read_by("a list of pairs: token ids, and a number", _sequence_bias)
LOGIT_BIAS = _read_by("token ids, each with a number", _logit_bias)
LENGTH_DECAY = _read_by("a number of tokens and a factor", _decay)
BREAKERS = _read_by("texts or lists of token ids, none empty", _breakers, str)


def _early_stopping(value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise ValueError
    return value


EARLY_STOPPING = _read_by('True, False or "never"', _early_stopping)


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

"""The rules of generation_config.json: limits of length, and changes of the logits.

A rule is a field that gptx obeys and that no call can give. `read_rules` turns the file's values
into `Rules`, as transformers reads them. This file knows neither models nor text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SMALLEST_FLOAT = 5e-324
LARGEST_FLOAT = 1.7e308


@dataclass(frozen=True)
class Rules:
    """The rules of generation_config.json, by transformers' names. The defaults change nothing.

    max_length and min_length count the tokens of prompt and text together.
    """

    max_length: int | None = None
    min_length: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    encoder_repetition_penalty: float = 1.0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    def ids(self) -> dict[str, list[int]]:
        """For each field whose token ids must be in the vocabulary, those ids.

        In these fields, transformers fails at an id outside the vocabulary. In suppress_tokens and
        begin_suppress_tokens, it ignores such an id.
        """
        forced_bos = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        return {
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "sequence_bias": [token for word, _ in self.sequence_bias for token in word],
            "forced_bos_token_id": list(forced_bos),
            "forced_eos_token_id": list(self.forced_eos_token_id),
        }


NO_RULES = Rules()
_SAMPLING_ONLY = ("typical_p", "epsilon_cutoff", "eta_cutoff")


def read_rules(generation: Mapping[str, Any], *, sampled: bool) -> tuple[Rules, list[str]]:
    """The rules of a generation_config.json, and a sentence for each field with a wrong value.

    sampled: tokens are drawn at random. Otherwise the fields for sampling are ignored.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, (read, expected) in _READERS.items():
        value = generation.get(name)
        if value is None or (name in _SAMPLING_ONLY and not sampled):
            continue
        try:
            values[name] = read(value)
        except (TypeError, ValueError, OverflowError, LookupError):
            problems.append(f"{name} is {value!r:.80}, expected {expected}")
    return Rules(**values), problems


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(without_fraction(value))


def without_fraction(value: Any) -> Any:
    """Turn 3.0 into 3; return any other value unchanged.

    Some programs write whole numbers in JSON as 3.0, and transformers accepts them as lengths.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any) -> int:
    return max(_integer(value), 0)  # transformers reads a negative number as 0


def _id(value: Any) -> int:
    token = _integer(value)
    if token < 0:
        raise ValueError
    return token


def _number(value: Any, lowest: float, highest: float) -> float:
    if isinstance(value, bool | str):
        raise TypeError
    number = float(value)
    if not lowest <= number <= highest:
        raise ValueError
    return number


def _penalty(value: Any) -> float:
    return _number(value, SMALLEST_FLOAT, LARGEST_FLOAT)


def _typical(value: Any) -> float:
    # 1 or more is off, as in transformers
    return min(_number(value, SMALLEST_FLOAT, math.inf), 1.0)


def _cutoff(value: Any) -> float:
    cutoff = _number(value, -math.inf, math.inf)
    return cutoff if 0 < cutoff < 1 else 0.0  # 0 is off; transformers ignores other values, too


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(_integer(token) for token in _list(value))


def _word(value: Any) -> tuple[int, ...]:
    word = tuple(_id(token) for token in _list(value))
    if not word:
        raise ValueError
    return word


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(_word(word) for word in _list(value))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    # Of two biases for the same sequence, the last one holds, as in transformers.
    biases: dict[tuple[int, ...], float] = {}
    for pair in _list(value):
        word, bias = _list(pair)
        biases[_word(word)] = _number(bias, -math.inf, LARGEST_FLOAT)
    return tuple(biases.items())


def _one_or_several(value: Any) -> tuple[int, ...]:
    return (
        tuple(_id(token) for token in value) if isinstance(value, list | tuple) else (_id(value),)
    )


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _list(value)
    return _integer(start), _number(factor, 0, LARGEST_FLOAT)


# For each rule, the function that reads its value, and the expected value in words
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "max_length": (lambda value: max(_integer(value), 1), "a number of tokens"),
    "min_length": (_count, "a number of tokens"),
    "suppress_tokens": (_ids, "a list of token ids"),
    "begin_suppress_tokens": (_ids, "a list of token ids"),
    "bad_words_ids": (_words, "a list of lists of token ids"),
    "sequence_bias": (_biases, "a list of pairs: token ids, and a number"),
    "no_repeat_ngram_size": (_count, "a number of tokens"),
    "encoder_no_repeat_ngram_size": (_count, "a number of tokens"),
    "encoder_repetition_penalty": (_penalty, "a number over 0"),
    "forced_bos_token_id": (_id, "a token id"),
    "forced_eos_token_id": (_one_or_several, "a token id or a list of them"),
    "exponential_decay_length_penalty": (_decay, "a number of tokens and a factor"),
    "typical_p": (_typical, "a number over 0"),
    "epsilon_cutoff": (_cutoff, "a number"),
    "eta_cutoff": (_cutoff, "a number"),
}

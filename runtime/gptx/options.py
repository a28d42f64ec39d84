"""How to generate: the call's arguments and the artifact's generation_config.json in, checked Options out.

A value is the call's argument, else generation_config.json's, else greedy. Knows nothing of models or tokens' text.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypedDict, TypeGuard

from gptx.errors import UsageError, warn

MAX_NEW_TOKENS = 256  # where neither the call nor the artifact says, in generate and gptx run


class Given(TypedDict, total=False):
    """The keywords of Model.generate and Model.stream; None: not given."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_tokens: Sequence[int] | None


@dataclass(frozen=True)
class Options:
    max_new_tokens: int | None  # None: to the end of text or context
    min_new_tokens: int
    temperature: float  # 0: greedy
    top_k: int  # 0: off
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None  # None where nothing is drawn
    stop: tuple[str, ...]
    stop_tokens: tuple[int, ...]


DEFAULTS: dict[str, Any] = {
    "min_new_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": (),
}


def resolve(given: Mapping[str, Any], generation: Mapping[str, Any], *, max_new_tokens: int | None) -> Options:
    """`max_new_tokens`: the last resort for that option. Raises UsageError, naming every option that makes no sense."""
    unknown = sorted(set(given) - set(Given.__annotations__))
    if unknown:
        raise UsageError(f"unknown option {', '.join(unknown)}; known are {', '.join(Given.__annotations__)}")
    configured = from_generation_config(generation)
    values = {**DEFAULTS, "max_new_tokens": max_new_tokens, **configured}
    values |= {name: value for name, value in given.items() if value is not None}
    if isinstance(values["stop"], str):
        values["stop"] = (values["stop"],)
    problems = []
    for name, value in values.items():
        if problem := _problem(name, value):
            ours = given.get(name) is None and name in configured
            problems.append(problem + (" (from the artifact's generation_config.json)" if ours else ""))
    if not problems and values["max_new_tokens"] is not None and values["min_new_tokens"] > values["max_new_tokens"]:
        problems.append(
            f"min_new_tokens is {values['min_new_tokens']}, more than max_new_tokens {values['max_new_tokens']}"
        )
    if problems:
        raise UsageError("; ".join(problems))
    drawn = values["temperature"] > 0
    if not drawn and given.get("temperature") is None:
        warn_of_unused(given)
    return Options(
        max_new_tokens=values["max_new_tokens"],
        min_new_tokens=values["min_new_tokens"],
        temperature=float(values["temperature"]),
        top_k=values["top_k"],
        top_p=float(values["top_p"]),
        min_p=float(values["min_p"]),
        repetition_penalty=float(values["repetition_penalty"]),
        seed=values.get("seed", int.from_bytes(os.urandom(4))) if drawn else None,
        stop=tuple(values["stop"]),
        stop_tokens=tuple(operator.index(token) for token in values.get("stop_tokens", ())),
    )


def warn_of_unused(given: Mapping[str, Any]) -> None:
    """Options that choose how to draw, where nothing is drawn because no temperature was given."""
    unused = [name for name, off in _OF_DRAWING.items() if given.get(name) not in (None, off)]
    if unused:
        words = f"{', '.join(unused[:-1])} and {unused[-1]} change" if unused[1:] else f"{unused[0]} changes"
        warn(f"{words} nothing: the likeliest token is always taken here, unless temperature is given")


def from_generation_config(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Hugging Face's fields that we have, under our names. do_sample false, its default, is temperature 0."""
    names = ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("stop_strings") is not None:
        values["stop"] = generation["stop_strings"]
    if not generation.get("do_sample"):
        values["temperature"] = 0.0
    else:
        values.setdefault("temperature", 1.0)
    return values


_OF_DRAWING = {"top_k": 0, "top_p": 1, "min_p": 0, "seed": None}  # and what says the same as not giving it
_NUMBERS = {  # name: (lowest, highest, what to say of it)
    "temperature": (0, math.inf, "0 (greedy) or more"),
    "top_p": (0, 1, "over 0 and at most 1"),
    "min_p": (0, 1, "0 to 1"),
    "repetition_penalty": (0, math.inf, "over 0 (1 is none)"),
}
_COUNTS = {  # name: (lowest, what to say of it)
    "max_new_tokens": (1, "1 or more"),
    "min_new_tokens": (0, "0 or more"),
    "top_k": (0, "0 (off) or more"),
    "seed": (0, "0 or more"),
}
_OVER_ZERO = ("top_p", "repetition_penalty")


def _problem(name: str, value: Any) -> str | None:
    if name in _NUMBERS:
        lowest, highest, expected = _NUMBERS[name]
        if isinstance(value, bool) or not _is_number(value) or not lowest <= value <= highest or math.isinf(value):
            return f"{name} is {value!r}, expected {expected}"
        return f"{name} is {value!r}, expected {expected}" if value == 0 and name in _OVER_ZERO else None
    if name in _COUNTS:
        lowest, expected = _COUNTS[name]
        if value is None and name == "max_new_tokens":
            return None
        good = not isinstance(value, bool) and _is_index(value) and operator.index(value) >= lowest
        return None if good else f"{name} is {value!r}, expected {expected}"
    if name == "stop" and (
        not isinstance(value, Sequence) or not all(isinstance(text, str) and text for text in value)
    ):
        return f"stop is {value!r}, expected texts that are not empty"
    if name == "stop_tokens" and (not isinstance(value, Sequence) or not all(map(_is_index, value))):
        return f"stop_tokens is {value!r}, expected token ids"
    return None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _is_index(value: Any) -> TypeGuard[SupportsIndex]:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True

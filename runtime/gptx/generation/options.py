"""How to generate: the call's arguments and the artifact's generation_config.json in, checked Options out.

A value is the call's argument, else generation_config.json's, else greedy. Knows nothing of models or tokens' text.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, SupportsIndex, TypedDict, TypeGuard

from gptx.errors import UsageError, shown, warn
from gptx.generation.generation_config import NO_RULES, Rules, read_rules, whole

MAX_NEW_TOKENS = 256  # where neither the call nor the artifact says, in generate and gptx run
TOP_K = 50  # transformers' default where do_sample is true and the file has no top_k
MOST_SEED = 2**128 - 1  # the generator uses no more bits
MOST_STOP_TOKENS = 1 << 20  # more than any vocabulary has


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
    rules: Rules = NO_RULES  # what only generation_config.json can ask for


DEFAULTS: dict[str, Any] = {
    "min_new_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": (),
}


def resolve(
    given: Mapping[str, Any], generation: Mapping[str, Any], *, max_new_tokens: int | None
) -> Options:
    """`max_new_tokens`: the last resort for that option. Raises UsageError, naming every option that makes no sense."""
    unknown = sorted(set(given) - set(Given.__annotations__))
    if unknown:
        raise UsageError(
            f"unknown option {', '.join(unknown)}; known are {', '.join(Given.__annotations__)}"
        )
    given = {name: value for name, value in given.items() if value is not None}
    configured = from_generation_config(generation)
    values = {**DEFAULTS, **configured, **given}
    longest = None if values.get("max_new_tokens") is not None else values.get("max_length")
    values.setdefault("max_new_tokens", max_new_tokens if longest is None else None)
    if isinstance(values["stop"], str):
        values["stop"] = (values["stop"],)
    drawn = _is_number(values["temperature"]) and float(values["temperature"]) > 0
    rules, problems = read_rules({**generation, "max_length": longest}, sampled=drawn)
    if not isinstance(generation.get("do_sample"), bool | int | None):
        problems.append(f"do_sample is {generation['do_sample']!r:.80}, expected true or false")
    problems = [problem + FROM_FILE for problem in problems]
    for name, value in values.items():
        ours = name not in given and name in configured
        if ours and name in SAMPLED and not drawn:
            values[name] = DEFAULTS[
                name
            ]  # transformers, too, passes over these where nothing is drawn
        elif problem := _problem("stop_strings" if ours and name == "stop" else name, value):
            problems.append(problem + (FROM_FILE if ours else ""))
    if (
        not problems
        and values["max_new_tokens"] is not None
        and values["min_new_tokens"] > values["max_new_tokens"]
    ):
        if "min_new_tokens" in given:
            problems.append(
                f"min_new_tokens is {shown(values['min_new_tokens'])}, more than max_new_tokens"
                f" {shown(values['max_new_tokens'])}"
            )
        values["min_new_tokens"] = values[
            "max_new_tokens"
        ]  # the file's is put aside, as in transformers
    if problems:
        raise UsageError("; ".join(problems))
    if not drawn and "temperature" not in given:
        warn_of_unused(given)
    if "min_new_tokens" in {**configured, **given}:
        rules = replace(rules, min_length=0)  # which min_new_tokens takes the place of
    most = values["max_new_tokens"]
    return Options(
        max_new_tokens=None if most is None else operator.index(most),
        min_new_tokens=operator.index(values["min_new_tokens"]),
        temperature=float(values["temperature"]),
        top_k=operator.index(values["top_k"]),
        top_p=float(values["top_p"]),
        min_p=float(values["min_p"]),
        repetition_penalty=float(values["repetition_penalty"]),
        seed=operator.index(values.get("seed", int.from_bytes(os.urandom(4)))) if drawn else None,
        stop=tuple(values["stop"]),
        stop_tokens=tuple(operator.index(token) for token in values.get("stop_tokens", ())),
        rules=rules,
    )


def warn_of_unused(given: Mapping[str, Any]) -> None:
    """Options that choose how to draw, where nothing is drawn because no temperature was given."""
    unused = [name for name, off in _OF_DRAWING.items() if given.get(name) not in (None, off)]
    if unused:
        words = (
            f"{', '.join(unused[:-1])} and {unused[-1]} change"
            if unused[1:]
            else f"{unused[0]} changes"
        )
        warn(
            f"{words} nothing: the likeliest token is always taken here, unless temperature is given"
        )


def from_generation_config(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Hugging Face's fields that are options of a call, under our names, and max_length.

    Absent fields have transformers' defaults: do_sample false, which is temperature 0; where it is true, temperature 1
    and top_k 50. A field that is null is off.
    """
    names = (
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
    )
    values = {name: generation[name] for name in names if generation.get(name) is not None}
    values |= {name: whole(value) for name, value in values.items() if name in _COUNTS}
    if generation.get("stop_strings") is not None:
        values["stop"] = generation["stop_strings"]
    if not generation.get("do_sample"):
        values["temperature"] = 0.0
    else:
        values.setdefault("temperature", 1.0)
        if "top_k" not in generation:
            values["top_k"] = TOP_K
    if generation.get("max_length") is not None and "max_new_tokens" not in values:
        if (
            generation["max_length"] == 20
        ):  # transformers takes this for its own default: 20 new tokens
            values["max_new_tokens"] = 20
        else:
            values["max_length"] = generation["max_length"]
    return values


def limits_length(values: Mapping[str, Any]) -> bool:
    """Whether options or a generation_config.json say how long a text may become."""
    return any(values.get(name) is not None for name in ("max_new_tokens", "max_length"))


FROM_FILE = " (from the artifact's generation_config.json)"
SAMPLED = ("top_k", "top_p", "min_p")
_OF_DRAWING = {
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "seed": None,
}  # and what says the same as not giving it
_NUMBERS = {  # name: (lowest, highest, what to say of it)
    "temperature": (0, 1.7e308, "0 (greedy) or more"),
    "top_p": (0, 1, "0 to 1"),
    "min_p": (0, 1, "0 to 1"),
    "repetition_penalty": (5e-324, 1.7e308, "over 0 (1 is none)"),
}
_COUNTS = {  # name: (lowest, what to say of it)
    "max_new_tokens": (1, "1 or more"),
    "min_new_tokens": (0, "0 or more"),
    "top_k": (0, "0 (off) or more"),
    "seed": (0, "0 to 2**128 - 1"),
}


def _problem(name: str, value: Any) -> str | None:
    if name in _NUMBERS:
        lowest, highest, expected = _NUMBERS[name]
        good = _is_number(value) and lowest <= float(value) <= highest
        return None if good else f"{name} is {shown(value)}, expected {expected}"
    if name in _COUNTS:
        lowest, expected = _COUNTS[name]
        if value is None and name == "max_new_tokens":
            return None
        highest = MOST_SEED if name == "seed" else math.inf
        good = _is_index(value) and lowest <= operator.index(value) <= highest
        return None if good else f"{name} is {shown(value)}, expected {expected}"
    if name in ("stop", "stop_strings"):
        good = isinstance(value, Sequence) and all(isinstance(text, str) and text for text in value)
        return None if good else f"{name} is {shown(value)}, expected texts that are not empty"
    if name == "stop_tokens":
        # the slice: range(10**30) has no length that Python could give
        good = (
            isinstance(value, Sequence)
            and not value[MOST_STOP_TOKENS:]
            and all(map(_is_index, value))
        )
        return None if good else f"stop_tokens is {shown(value)}, expected token ids"
    return None


def _is_number(value: Any) -> bool:
    """Whether this is a real number that a float can hold, infinite ones included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _is_index(value: Any) -> TypeGuard[SupportsIndex]:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)

"""A call's options and the artifact's generation_config.json in, checked Options out.

An option's value is the call's, else the one of generation_config.json, else the default. This file
knows neither models nor the text of tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptx.errors import UsageError, shown, warn
from gptx.generation.generation_config import read_rules, whole
from gptx.generation.option_kinds import is_number
from gptx.generation.options import DEFAULTS, SPECS, Options

TOP_K = 50  # transformers' default if do_sample is true and the file has no top_k
DEFAULT_MAX_LENGTH = 20  # transformers' default, which it reads as 20 new tokens
FROM_FILE = " (from the artifact's generation_config.json)"


def resolve(
    given: Mapping[str, Any], generation: Mapping[str, Any], *, max_new_tokens: int | None
) -> Options:
    """Check options and fill in those that were not given.

    `given` holds the keywords of a call (None: not given), `generation` the artifact's
    generation_config.json. `max_new_tokens` is the default of that option. Raises UsageError, which
    names every option that makes no sense.
    """
    if unknown := sorted(given.keys() - SPECS.keys()):
        raise UsageError(f"unknown option {', '.join(unknown)}; known are {', '.join(SPECS)}")
    given = {name: value for name, value in given.items() if value is not None}
    file = from_generation_config(generation)
    values = {**file, **given}
    max_length = values.pop("max_length", None)
    if values.get("max_new_tokens") is not None:
        max_length = None
    values.setdefault("max_new_tokens", max_new_tokens if max_length is None else None)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    temperature = values.get("temperature")
    draws = is_number(temperature) and float(temperature) > 0  # type: ignore[arg-type]
    rules, problems = read_rules({**generation, "max_length": max_length}, sampled=draws)
    problems = [problem + FROM_FILE for problem in [*problems, *_do_sample(generation)]]
    if not draws:  # transformers, too, ignores these fields of the file in greedy decoding
        values = {
            name: value
            for name, value in values.items()
            if name in given or not SPECS[name].draws_only
        }
    problems += [
        problem
        for name, spec in SPECS.items()
        if name in values and (problem := _problem(name, values[name], from_file=name not in given))
    ]
    if not problems:
        problems += _shorten_minimum(values, given)
    if problems:
        raise UsageError("; ".join(problems))
    if not draws and "temperature" not in given:
        warn_of_unused(given)
    if "min_new_tokens" in file or "min_new_tokens" in given:
        rules = replace(rules, min_length=0)  # min_new_tokens takes its place
    if draws:
        values.setdefault("seed", int.from_bytes(os.urandom(4)))
    else:
        values.pop("seed", None)
    checked: dict[str, Any] = {
        name: None if value is None else SPECS[name].kind.convert(value)
        for name, value in values.items()
    }
    return Options(**checked, rules=rules)


def _do_sample(generation: Mapping[str, Any]) -> list[str]:
    value = generation.get("do_sample")
    if isinstance(value, bool | int | None):
        return []
    return [f"do_sample is {value!r:.80}, expected true or false"]


def _problem(name: str, value: Any, *, from_file: bool) -> str | None:
    """The fault of one option's value, or None."""
    kind = SPECS[name].kind
    if kind.accepts(value) or (value is None and DEFAULTS[name] is None):
        return None
    called = "stop_strings" if from_file and name == "stop" else name
    return f"{called} is {shown(value)}, expected {kind.expected}" + FROM_FILE * from_file


def _shorten_minimum(values: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Bring min_new_tokens down to max_new_tokens. It is a fault only if the call gave the minimum;
    transformers, too, shortens the file's."""
    most, least = values["max_new_tokens"], values.get("min_new_tokens", 0)
    if most is None or least <= most:
        return []
    values["min_new_tokens"] = most
    if "min_new_tokens" not in given:
        return []
    return [f"min_new_tokens is {shown(least)}, more than max_new_tokens {shown(most)}"]


def warn_of_unused(given: Mapping[str, Any]) -> None:
    """Warn of options that change only how tokens are drawn, in a call that draws none."""
    unused = [
        name
        for name, spec in SPECS.items()
        if spec.draws_only and given.get(name) not in (None, DEFAULTS[name])
    ]
    if not unused:
        return
    names = unused[0] if len(unused) == 1 else f"{', '.join(unused[:-1])} and {unused[-1]}"
    warn(
        f"{names} {'changes' if len(unused) == 1 else 'change'} nothing: the likeliest token is"
        " always taken here, unless temperature is given"
    )


def from_generation_config(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of generation_config.json that are options of a call, under our names.

    `max_length`, the length of prompt and text together, is among them if the file gives it and no
    max_new_tokens. Absent fields have transformers' defaults: do_sample false, which is temperature
    0; if it is true, temperature 1 and top_k 50. A field that is null is off.
    """
    values = {name: generation[name] for name in SPECS if generation.get(name) is not None}
    for name in ("seed", "stop", "stop_tokens"):  # not of this file: it has stop_strings
        values.pop(name, None)
    values |= {
        name: whole(value) for name, value in values.items() if SPECS[name].kind.shell is int
    }
    if generation.get("stop_strings") is not None:
        values["stop"] = generation["stop_strings"]
    if not generation.get("do_sample"):
        values["temperature"] = 0.0
    else:
        values.setdefault("temperature", 1.0)
        if "top_k" not in generation:
            values["top_k"] = TOP_K
    max_length = generation.get("max_length")
    if max_length == DEFAULT_MAX_LENGTH:
        values.setdefault("max_new_tokens", DEFAULT_MAX_LENGTH)
    elif max_length is not None and "max_new_tokens" not in values:
        values["max_length"] = max_length
    return values


def limits_length(generation: Mapping[str, Any]) -> bool:
    """Whether a generation_config.json says how long a text may become."""
    return any(generation.get(name) is not None for name in ("max_new_tokens", "max_length"))

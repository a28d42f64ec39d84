"""A call's options and the artifact's generation_config.json in, checked Options out.

The value of an option is the call's, else the one in generation_config.json, else the default. This
file knows neither models nor text.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from gptx.errors import UsageError, shown, warn
from gptx.generation.generation_rules import read_rules, without_fraction
from gptx.generation.option_kinds import BREAKERS, TEXTS, is_index, is_number
from gptx.generation.options import DEFAULTS, SPECS, Options

# Defaults of transformers for fields that generation_config.json does not have
TOP_K = 50  # if do_sample is true
DEFAULT_MAX_LENGTH = 20  # transformers reads a max_length of 20 as 20 new tokens
# Options that do nothing without another one
NEEDS = {
    "length_penalty": "num_beams",
    "early_stopping": "num_beams",
    "xtc_threshold": "xtc_probability",
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_sequence_breakers": "dry_multiplier",
}
FROM_FILE = " (from the artifact's generation_config.json)"


def resolve(
    given: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    max_new_tokens: int | None,
    also: Sequence[str] = (),
) -> Options:
    """Check a call's options and fill in those that were not given.

    given: the keywords of the call. None means not given.
    generation: the artifact's generation_config.json.
    max_new_tokens: the default of that option. None: only the model's context limits the text.
    also: other keywords of the call, which are no options, for the message about unknown ones.

    Raises UsageError if options are unknown or have wrong values; the message names all of them.
    """
    if unknown := sorted(given.keys() - SPECS.keys()):
        known = [*SPECS, *also]
        close = [name for one in unknown for name in get_close_matches(one, known, n=1)]
        advice = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}"
        raise UsageError(f"unknown option {', '.join(unknown)}; {advice}")
    given = {name: value for name, value in given.items() if value is not None}
    values, max_length = _merge(given, generation, max_new_tokens)
    if _number_of("num_beams", values) > 1 and "temperature" not in given:
        values["temperature"] = 0.0  # see generation_config.unsupported
    temperature = values.get("temperature")
    samples = is_number(temperature) and float(temperature) > 0  # type: ignore[arg-type]
    if not samples:  # transformers, too, ignores these fields of the file in greedy decoding
        values = {
            name: value
            for name, value in values.items()
            if name in given or not SPECS[name].sampling_only
        }
    rules, problems = read_rules({**generation, "max_length": max_length})
    problems = [problem + FROM_FILE for problem in [*problems, *_do_sample(generation)]]
    problems += _check_values(values, given)
    if not problems:
        problems += [*_shorten_minimum(values, given), *_several_texts(values, samples)]
    if problems:
        raise UsageError("; ".join(problems))
    if not samples and "temperature" not in given:
        warn_of_unused(given)
    if "min_new_tokens" in values:
        rules = replace(rules, min_length=0)  # replaced by min_new_tokens, as in transformers
    if samples:
        values.setdefault("seed", int.from_bytes(os.urandom(4)))
    else:
        values.pop("seed", None)
    options = Options(**_convert(values), rules=rules)
    _warn_of_lone(given, options)
    return options


def _merge(
    given: Mapping[str, Any], generation: Mapping[str, Any], max_new_tokens: int | None
) -> tuple[dict[str, Any], int | None]:
    """The options of the call and the file together, and the file's max_length.

    The max_length is None if the call or the file has max_new_tokens, which takes precedence.
    """
    values = {**from_generation_config(generation), **given}
    max_length = values.pop("max_length", None)
    if values.get("max_new_tokens") is not None:
        max_length = None
    values.setdefault("max_new_tokens", max_new_tokens if max_length is None else None)
    for name, value in values.items():
        if isinstance(value, str) and SPECS[name].kind in (TEXTS, BREAKERS):
            values[name] = (value,)
    return values, max_length


def _do_sample(generation: Mapping[str, Any]) -> list[str]:
    value = generation.get("do_sample")
    if isinstance(value, bool | int | None):
        return []
    return [f"do_sample is {value!r:.80}, expected true or false"]


def _check_values(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """A sentence for each option whose value is not allowed."""
    return [
        problem
        for name in SPECS
        if name in values and (problem := _problem(name, values[name], from_file=name not in given))
    ]


def _problem(name: str, value: Any, *, from_file: bool) -> str | None:
    """What is wrong with the value of one option, or None."""
    kind = SPECS[name].kind
    if kind.accepts(value) or (value is None and DEFAULTS[name] is None):
        return None
    called = "stop_strings" if from_file and name == "stop" else name
    return f"{called} is {shown(value)}, expected {kind.expected}" + FROM_FILE * from_file


def _shorten_minimum(values: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Lower min_new_tokens to max_new_tokens if it is larger.

    That is a problem only if the call gave the minimum. transformers, too, lowers the minimum of
    generation_config.json without an error.
    """
    most, least = values["max_new_tokens"], values.get("min_new_tokens", 0)
    if most is None or operator.index(least) <= operator.index(most):
        return []
    values["min_new_tokens"] = most
    if "min_new_tokens" not in given:
        return []
    return [f"min_new_tokens is {shown(least)}, more than max_new_tokens {shown(most)}"]


def _several_texts(values: Mapping[str, Any], samples: bool) -> list[str]:
    """What is wrong with the number of beams and of texts."""
    beams, texts = (_number_of(name, values) for name in ("num_beams", "num_return_sequences"))
    if beams > 1 and samples:
        return [
            f"num_beams {beams} searches for the likeliest text, and temperature"
            f" {values['temperature']} draws at random: give one of them"
        ]
    if beams > 1 and texts > beams:
        return [f"num_return_sequences is {texts}, more than num_beams {beams}"]
    if beams == 1 and texts > 1 and not samples:
        return [
            f"num_return_sequences is {texts}, and greedy decoding gives only one text: give a"
            " temperature, or num_beams"
        ]
    return []


def _number_of(name: str, values: Mapping[str, Any]) -> int:
    """An option's value, a whole number; 1 if it is absent or wrong."""
    value = values.get(name, 1)
    return operator.index(value) if SPECS[name].kind.accepts(value) else 1


def _convert(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if value is None else SPECS[name].kind.convert(value)
        for name, value in values.items()
    }


def warn_of_unused(given: Mapping[str, Any]) -> None:
    """Warn of options that have an effect only in sampling. Call this if decoding is greedy."""
    unused = [
        name
        for name, spec in SPECS.items()
        if spec.sampling_only and given.get(name) not in (None, DEFAULTS[name])
    ]
    if not unused:
        return
    names = unused[0] if len(unused) == 1 else f"{', '.join(unused[:-1])} and {unused[-1]}"
    warn(
        f"{names} {'has' if len(unused) == 1 else 'have'} no effect: decoding is greedy (always the"
        " likeliest token) unless temperature is given"
    )


def _warn_of_lone(given: Mapping[str, Any], options: Options) -> None:
    """Warn of options of the call that do nothing without another one."""
    for name, needed in NEEDS.items():
        changed, has_needed = (getattr(options, one) != DEFAULTS[one] for one in (name, needed))
        if name in given and changed and not has_needed:
            warn(f"{name} has no effect without {needed}")


def from_generation_config(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of generation_config.json that are options of a call, by the option's name.

    The result also has `max_length` (the length of prompt and text together) if the file gives it
    and gives no max_new_tokens. If do_sample is absent or false, temperature is 0. If it is true,
    temperature defaults to 1 and top_k to 50, as in transformers. A field that is null is off.
    """
    values = {name: generation[name] for name in SPECS if generation.get(name) is not None}
    # The file has stop_strings in place of stop
    for name in ("seed", "stop", "stop_tokens", "num_return_sequences"):
        values.pop(name, None)
    values = {name: _as_transformers_reads(name, value) for name, value in values.items()}
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


def _as_transformers_reads(name: str, value: Any) -> Any:
    """A field's value in the form that a call may give.

    transformers ignores cutoffs that are not between 0 and 1, reads a typical_p above 1 as 1, and a
    negative no_repeat_ngram_size as 0.
    """
    if name in ("epsilon_cutoff", "eta_cutoff") and is_number(value) and not 0 < value < 1:
        return 0.0
    if name == "typical_p" and is_number(value) and value > 1:
        return 1.0
    if SPECS[name].kind.shell is float:
        return value
    value = without_fraction(value)
    if name == "no_repeat_ngram_size" and is_index(value):
        return max(operator.index(value), 0)
    return value


def limits_length(generation: Mapping[str, Any]) -> bool:
    """Whether a generation_config.json limits the length of the text."""
    return any(generation.get(name) is not None for name in ("max_new_tokens", "max_length"))

"""Translate generation_config.json into the "search" part of genai_config.json (onnxruntime-genai).

Its fields are those of Config::Search in genai's src/config.h; genai refuses others. Some of
generation_config.json cannot be expressed there, and the user is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gptx.errors import CheckpointError, UsageError
from gptx.generation.generation_config import unsupported, unsupported_in_words
from gptx.generation.generation_rules import Rules, without_fraction
from gptx.generation.options import DEFAULTS, Options
from gptx.generation.resolve_options import FROM_FILE, resolve
from gptx.progress import note

_BEAM_FIELDS = ("num_beams", "length_penalty", "early_stopping")
_RULES_IN_GENAI = ("max_length", "min_length")
_OPTIONS_IN_GENAI = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
_LARGEST_INT = 2**31 - 1


def search(
    generation: Mapping[str, Any], shape: Mapping[str, Any], *, shared: bool
) -> dict[str, Any]:
    """The "search" object for a generation_config.json.

    shape: `model` of gptx.json. shared: True if the cache has the form `shared`.
    Raises CheckpointError if gptx cannot obey a value of generation_config.json.
    """
    options = _options(generation)
    rules = options.rules
    top_k = without_fraction(generation.get("top_k", 50))
    values = {
        # top_p 0 leaves only the likeliest token in gptx; genai reads 0 as "no top_p"
        "do_sample": options.temperature > 0 and options.top_p > 0,
        "max_length": min(rules.max_length or shape["n_ctx"], shape["n_ctx"]),
        "min_length": min(rules.min_length, shape["n_ctx"]),
        "num_beams": options.num_beams,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared,
        "repetition_penalty": options.repetition_penalty,
        "temperature": _positive(generation.get("temperature"), default=1.0),
        "top_k": min(top_k, shape["vocab_size"]) if isinstance(top_k, int) and top_k > 0 else 0,
        "top_p": min(_positive(generation.get("top_p"), default=1.0), 1.0),
    }
    if options.no_repeat_ngram_size:
        values["no_repeat_ngram_size"] = min(options.no_repeat_ngram_size, _LARGEST_INT)
    if options.num_beams > 1:
        values["length_penalty"] = _positive(options.length_penalty, default=1.0)
        values["early_stopping"] = options.early_stopping is True
    return values


def note_unsupported(generation: Mapping[str, Any], *, genai: bool) -> None:
    """Tell the user which fields of generation_config.json gptx will ignore.

    genai: also tell which fields onnxruntime-genai will ignore.
    """
    if (line := unsupported_in_words(generation)) is not None:
        note(line)
    if genai and (names := not_in_genai_config(generation)):
        note(
            f"genai_config.json cannot hold {', '.join(names)}: onnxruntime-genai generates without"
        )


def not_in_genai_config(generation: Mapping[str, Any]) -> list[str]:
    """Names of the fields that change the generated text and that genai_config.json cannot hold."""
    options = _options(generation)
    names = [
        name
        for name in ("max_new_tokens", "min_new_tokens", "stop_strings")
        if generation.get(name) is not None
    ]
    # A max_length of 20, Hugging Face's default, is read as max_new_tokens.
    limits_new_tokens = options.rules.max_length is None and options.max_new_tokens is not None
    if limits_new_tokens and "max_new_tokens" not in names:
        names.append("max_length")
    names += [
        name
        for name, default in DEFAULTS.items()
        if name in generation and getattr(options, name) != default
        if name not in (*names, *_OPTIONS_IN_GENAI, *_BEAM_FIELDS)
    ]
    names += [
        field.name
        for field in fields(Rules)
        if getattr(options.rules, field.name) != field.default
        if field.name not in _RULES_IN_GENAI
    ]
    return [*names, *unsupported(generation)]


def _options(generation: Mapping[str, Any]) -> Options:
    """The options of a generation_config.json. Raises CheckpointError for a value out of range."""
    try:
        return resolve({}, generation, max_new_tokens=None)
    except UsageError as error:
        raise CheckpointError(
            f"generation_config.json: {str(error).replace(FROM_FILE, '')}"
        ) from error


def _positive(value: Any, *, default: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and value > 0 else default

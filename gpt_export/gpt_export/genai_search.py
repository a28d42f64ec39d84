"""What onnxruntime-genai is told of generation_config.json: the "search" part of genai_config.json, and the fields that
it cannot express (Config::Search in genai's config.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gptx.errors import CheckpointError, UsageError
from gptx.generation.generation_config import (
    NO_RULES,
    Rules,
    unsupported,
    unsupported_in_words,
    whole,
)
from gptx.generation.options import Options
from gptx.generation.resolve_options import FROM_FILE, resolve
from gptx.progress import note

_BEAMS = ("num_beams", "length_penalty", "early_stopping")  # genai has beam search
_RULES = ("max_length", "min_length", "no_repeat_ngram_size")
_LARGEST = 2**31 - 1


def search(
    generation: Mapping[str, Any], shape: Mapping[str, Any], *, shared: bool
) -> dict[str, Any]:
    """Raises CheckpointError for a generation_config.json that gptx cannot obey."""
    options = _options(generation)
    sampled, rules = options.temperature > 0, options.rules
    beams = generation["num_beams"] if "num_beams" in unsupported(generation) else 1
    top_k = whole(generation.get("top_k", 50))
    values = {
        # top_p 0 leaves the likeliest token alone; genai takes it for none
        "do_sample": sampled and options.top_p > 0,
        "max_length": min(rules.max_length or shape["n_ctx"], shape["n_ctx"]),
        "min_length": min(rules.min_length, shape["n_ctx"]),
        "num_beams": beams,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared,
        "repetition_penalty": options.repetition_penalty,
        "temperature": _positive(generation.get("temperature"), 1.0),
        "top_k": min(top_k, shape["vocab_size"]) if isinstance(top_k, int) and top_k > 0 else 0,
        "top_p": min(_positive(generation.get("top_p"), 1.0), 1.0),
    }
    if rules.no_repeat_ngram_size:
        values["no_repeat_ngram_size"] = min(rules.no_repeat_ngram_size, _LARGEST)
    if beams != 1:
        values["length_penalty"] = _positive(generation.get("length_penalty"), 1.0)
        values["early_stopping"] = generation.get("early_stopping") is True
    return values


def tell(generation: Mapping[str, Any], *, genai: bool) -> None:
    """Name on standard error what gptx, and what onnxruntime-genai will not do of what the file asks for."""
    if (line := unsupported_in_words(generation)) is not None:
        note(line)
    if genai and (names := unsaid(generation)):
        note(
            f"genai_config.json cannot hold {', '.join(names)}: onnxruntime-genai generates without"
        )


def unsaid(generation: Mapping[str, Any]) -> list[str]:
    """The fields that change the text and that genai_config.json cannot hold."""
    options = _options(generation)
    rules: Rules = options.rules
    names = [
        name
        for name in ("max_new_tokens", "min_new_tokens", "stop_strings")
        if generation.get(name) is not None
    ]
    if (
        rules.max_length is None
        and options.max_new_tokens is not None
        and "max_new_tokens" not in names
    ):
        names.append("max_length")  # 20, which is a number of new tokens
    if options.temperature > 0 and options.min_p > 0:
        names.append("min_p")
    asked = [
        field.name
        for field in fields(Rules)
        if getattr(rules, field.name) != getattr(NO_RULES, field.name)
    ]
    names += [name for name in asked if name not in _RULES]
    return names + [name for name in unsupported(generation) if name not in _BEAMS]


def _options(generation: Mapping[str, Any]) -> Options:
    try:
        return resolve({}, generation, max_new_tokens=None)
    except UsageError as error:
        raise CheckpointError(
            f"generation_config.json: {str(error).replace(FROM_FILE, '')}"
        ) from error


def _positive(value: Any, otherwise: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and value > 0 else otherwise

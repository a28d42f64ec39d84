"""The fields of generation_config.json: which ones gptx obeys, and which ones it cannot obey.

The fields are those of transformers' GenerationConfig (version 4.57, and top_h of version 5), and
the options of gptx that transformers does not have. options.py and generation_rules.py say how the
values are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

# What gptx does with a field:
# "option"      obeyed; the call may give it, too (gptx.generation.options)
# "control"     obeyed; the call may give it, too (gptx.engine.control)
# "rule"        obeyed; only the file can ask for it: a rule for the logits or the length
# "token"       ignored here: gptx.json has the token's id
# "not obeyed"  it changes the text in transformers, and gptx does not do it: see `unsupported`
# "no effect"   the text is the same without it
Role = Literal["option", "rule", "control", "token", "no effect", "not obeyed"]


class Row(NamedTuple):
    """Fields of one role. note: what gptx does with them, or why it does nothing."""

    role: Role
    names: tuple[str, ...]
    note: str


def _row(role: Role, names: str, note: str) -> Row:
    return Row(role, tuple(names.split()), note)


ROWS: tuple[Row, ...] = (
    _row(
        "option",
        "max_new_tokens min_new_tokens temperature top_k top_p min_p typical_p epsilon_cutoff"
        " eta_cutoff repetition_penalty no_repeat_ngram_size sequence_bias bad_words_ids"
        " top_h suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id"
        " exponential_decay_length_penalty guidance_scale num_beams length_penalty early_stopping",
        "an option of the call, too",
    ),
    _row("option", "do_sample", "false is temperature 0; a call asks for sampling by temperature"),
    _row("option", "stop_strings", "the option stop of a call"),
    _row(
        "option",
        "top_n_sigma xtc_probability xtc_threshold presence_penalty frequency_penalty"
        " dry_multiplier dry_base dry_allowed_length dry_sequence_breakers logit_bias",
        "an option of the call, too; transformers does not have it",
    ),
    _row("rule", "max_length min_length", "a call has max_new_tokens and min_new_tokens"),
    _row(
        "rule",
        "encoder_no_repeat_ngram_size encoder_repetition_penalty",
        "the prompt is taken for the encoder's input, as in transformers",
    ),
    _row(
        "token",
        "bos_token_id eos_token_id pad_token_id",
        "read at export into gptx.json; a call adds stop_tokens",
    ),
    _row(
        "not obeyed",
        "num_beam_groups diversity_penalty constraints force_words_ids",
        "kinds of beam search that transformers has moved to the Hub",
    ),
    _row(
        "not obeyed",
        "num_return_sequences",
        "an option of the call: the file does not change what a call returns",
    ),
    _row(
        "not obeyed",
        "penalty_alpha",
        "contrastive search: transformers has moved it to the Hub; the graph gives no hidden states"
        " of candidates",
    ),
    _row(
        "not obeyed",
        "dola_layers",
        "DoLa: transformers has moved it to the Hub; the graph gives no logits of inner layers",
    ),
    _row(
        "not obeyed",
        "watermarking_config",
        "PyTorch's random generator chooses the marked tokens, so only PyTorch finds the mark",
    ),
    _row("not obeyed", "token_healing", "new tokens for the prompt's end: not built yet"),
    _row("control", "max_time", "the keyword max_time of a call"),
    _row("not obeyed", "is_assistant", "the rules of a draft model, which generate itself sets"),
    _row(
        "not obeyed",
        "cache_implementation",
        "gptx warns of a quantized cache; --cache-type of gptx export chooses the cache's type",
    ),
    _row(
        "no effect",
        "use_cache cache_config return_legacy_cache prefill_chunk_size low_memory compile_config"
        " disable_compile",
        "speed and memory: the artifact decides",
    ),
    _row(
        "no effect",
        "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit num_assistant_tokens"
        " num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind"
        " target_lookbehind",
        "drafts make transformers faster and leave the text as it is",
    ),
    _row(
        "no effect",
        "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate"
        " transformers_version _from_model_config _commit_hash",
        "what transformers returns beside the tokens, and notes",
    ),
    _row("no effect", "renormalize_logits", "adds the same number to all logits"),
    _row("no effect", "remove_invalid_values", "logits that are not finite are an error in gptx"),
    _row("no effect", "decoder_start_token_id", "for encoder-decoder models"),
)
FIELDS: dict[str, Role] = {name: row.role for row in ROWS for name in row.names}

# Fields: the value that changes nothing (null changes nothing, either), and what any other
# value asks for
_SINGLE_FIELDS: dict[str, tuple[Any, str]] = {
    "num_return_sequences": (1, "several texts for one prompt"),
    "dola_layers": (None, "decoding by contrasting layers"),
    "constraints": (None, "a constrained beam search"),
    "force_words_ids": (None, "a constrained beam search"),
    "watermarking_config": (None, "watermarks"),
    "token_healing": (False, "new tokens for the prompt's end"),
    "is_assistant": (False, "the rules of a draft model"),
}


def unsupported(generation: Mapping[str, Any]) -> dict[str, str]:
    """The fields that gptx does not obey and that change the text, each with what it asks for."""
    return dict(_unsupported(generation))


def _unsupported(generation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def asks(name: str, neutral: Any = None) -> bool:
        return generation.get(name) is not None and generation[name] != neutral

    def above(name: str, least: float, absent: Any = None) -> bool:
        value = generation.get(name, absent)
        return isinstance(value, int | float) and value > least

    samples = bool(generation.get("do_sample"))
    if above("num_beams", 1):
        for name, neutral in (("num_beam_groups", 1), ("diversity_penalty", 0)):
            if asks(name, neutral):
                yield name, "a diverse beam search"
        if samples:
            yield "do_sample", "beams that are drawn at random"
    elif not samples and above("penalty_alpha", 0) and above("top_k", 1, absent=50):
        yield "penalty_alpha", "contrastive search"
    for name, (neutral, reason) in _SINGLE_FIELDS.items():
        if asks(name, neutral):
            yield name, reason
    if generation.get("cache_implementation") == "quantized":
        yield "cache_implementation", "a quantized KV cache"


def unsupported_in_words(generation: Mapping[str, Any]) -> str | None:
    """A sentence that names the fields of `unsupported`; None if there are none."""
    found = unsupported(generation)
    if not found:
        return None
    listed = ", ".join(
        f"{name} {generation[name]!r:.40} ({reason})" for name, reason in found.items()
    )
    return (
        f"generation_config.json asks for what gptx does not do: {listed};"
        " text is generated without it"
    )

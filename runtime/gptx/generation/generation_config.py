"""The fields of generation_config.json: which ones gptx obeys, and which ones it cannot obey.

The fields are those of transformers' GenerationConfig (version 4.57, and top_h of version 5).
generation_rules.py reads the values of those that gptx obeys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

# What gptx does with a field:
# "option"      the call may give it, too (gptx.generation.options)
# "rule"        only the file can ask for it: a rule for the logits or the length
# "token"       ignored here: gptx.json has the token's id
# "not obeyed"  it changes the text in transformers, and gptx does not do it: see `unsupported`
# "no effect"   the text is the same without it
Role = Literal["option", "rule", "token", "no effect", "not obeyed"]

_ROLES: tuple[tuple[Role, str], ...] = (
    ("option", "max_new_tokens min_new_tokens temperature top_k top_p min_p"),
    ("option", "repetition_penalty do_sample stop_strings"),
    ("rule", "max_length min_length suppress_tokens begin_suppress_tokens bad_words_ids"),
    ("rule", "sequence_bias no_repeat_ngram_size encoder_no_repeat_ngram_size"),
    ("rule", "encoder_repetition_penalty forced_bos_token_id forced_eos_token_id"),
    ("rule", "exponential_decay_length_penalty typical_p epsilon_cutoff eta_cutoff"),
    ("token", "bos_token_id eos_token_id pad_token_id"),
    ("not obeyed", "num_beams num_beam_groups diversity_penalty length_penalty early_stopping"),
    ("not obeyed", "constraints force_words_ids num_return_sequences penalty_alpha dola_layers"),
    ("not obeyed", "guidance_scale watermarking_config token_healing max_time is_assistant"),
    ("not obeyed", "cache_implementation top_h"),
    # Speed and memory
    ("no effect", "use_cache cache_config return_legacy_cache prefill_chunk_size low_memory"),
    ("no effect", "compile_config disable_compile prompt_lookup_num_tokens"),
    ("no effect", "max_matching_ngram_size assistant_early_exit num_assistant_tokens"),
    ("no effect", "num_assistant_tokens_schedule assistant_confidence_threshold"),
    ("no effect", "assistant_lookbehind target_lookbehind"),
    # What transformers' generate returns beside the tokens
    ("no effect", "output_attentions output_hidden_states output_scores output_logits"),
    ("no effect", "return_dict_in_generate transformers_version _from_model_config _commit_hash"),
    # renormalize_logits adds the same number to all logits. remove_invalid_values changes logits
    # that are not finite; in gptx they are an error. The last one is for encoder-decoder models.
    ("no effect", "renormalize_logits remove_invalid_values decoder_start_token_id"),
)
FIELDS: dict[str, Role] = {name: role for role, names in _ROLES for name in names.split()}

# Fields of beam search, each with the value that changes nothing
_BEAM_FIELDS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "length_penalty": 1,
    "early_stopping": False,
}
# Other fields: the value that changes nothing (null changes nothing, either), and what any other
# value asks for
_SINGLE_FIELDS: dict[str, tuple[Any, str]] = {
    "num_return_sequences": (1, "several texts for one prompt"),
    "dola_layers": (None, "decoding by contrasting layers"),
    "guidance_scale": (1, "classifier-free guidance"),
    "watermarking_config": (None, "watermarks"),
    "token_healing": (False, "new tokens for the prompt's end"),
    "max_time": (None, "a time limit"),
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
    if asks("num_beams", 1) or asks("constraints") or asks("force_words_ids"):
        fields = {**_BEAM_FIELDS, "constraints": None, "force_words_ids": None}
        yield from ((name, "beam search") for name in fields if asks(name, fields[name]))
    elif not samples and above("penalty_alpha", 0) and above("top_k", 1, absent=50):
        yield "penalty_alpha", "contrastive search"
    for name, (neutral, reason) in _SINGLE_FIELDS.items():
        if asks(name, neutral):
            yield name, reason
    if samples and asks("top_h"):
        yield "top_h", "sampling by a share of the entropy"
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

"""The fields of generation_config.json: which ones gptx obeys, which ones change no text, and which ones it cannot obey.

The fields are those of transformers' GenerationConfig (4.57, and top_h of 5), the names of the groups are ours.
`Rules` holds the obeyed fields that are no option of a call: what the artifact asks of the logits. Knows nothing of
models or of tokens' text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["option", "rule", "token", "no effect", "not obeyed"]

FIELDS: dict[str, Role] = {
    # options of a call, which may also stand in the file (gptx.generation.options)
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p"), "option"),
    **dict.fromkeys(("repetition_penalty", "do_sample", "stop_strings"), "option"),
    # rules for the logits and the length, which only the file gives
    **dict.fromkeys(("max_length", "min_length", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"), "rule"),
    **dict.fromkeys(("sequence_bias", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), "rule"),
    **dict.fromkeys(("encoder_repetition_penalty", "forced_bos_token_id", "forced_eos_token_id"), "rule"),
    **dict.fromkeys(("exponential_decay_length_penalty", "typical_p", "epsilon_cutoff", "eta_cutoff"), "rule"),
    # the manifest has them
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), "token"),
    # they change the result in transformers: `unsupported` says when
    **dict.fromkeys(("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty"), "not obeyed"),
    **dict.fromkeys(("early_stopping", "constraints", "force_words_ids", "num_return_sequences"), "not obeyed"),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "guidance_scale", "watermarking_config"), "not obeyed"),
    **dict.fromkeys(("token_healing", "max_time", "is_assistant", "cache_implementation", "top_h"), "not obeyed"),
    # speed and memory: the same text
    **dict.fromkeys(("use_cache", "cache_config", "return_legacy_cache", "prefill_chunk_size", "low_memory"), "no effect"),
    **dict.fromkeys(("compile_config", "disable_compile", "prompt_lookup_num_tokens"), "no effect"),
    **dict.fromkeys(("max_matching_ngram_size", "assistant_early_exit", "num_assistant_tokens"), "no effect"),
    **dict.fromkeys(("num_assistant_tokens_schedule", "assistant_confidence_threshold"), "no effect"),
    **dict.fromkeys(("assistant_lookbehind", "target_lookbehind"), "no effect"),
    # what generate returns beside the tokens
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), "no effect"),
    **dict.fromkeys(("return_dict_in_generate", "transformers_version", "_from_model_config", "_commit_hash"), "no effect"),
    # a constant added to every logit; logits that are not finite, which gptx refuses; encoders
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "decoder_start_token_id"), "no effect"),
}  # fmt: skip


def unsupported(generation: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a generation_config.json that change what transformers writes and that gptx does not obey: each
    with the reason, in words."""

    def given(name: str, *neutral: Any) -> bool:
        return generation.get(name) is not None and generation[name] not in neutral

    def above(name: str, least: float, absent: Any = None) -> bool:
        value = generation.get(name, absent)
        return isinstance(value, int | float) and value > least

    beams, sampled = given("num_beams", 1), bool(generation.get("do_sample"))
    found: dict[str, str] = {}

    def add(reason: str, *names: str) -> None:
        found.update({name: reason for name in names if name not in found})

    if beams or given("constraints") or given("force_words_ids"):
        names = (
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "length_penalty",
            "early_stopping",
        )
        neutral = {
            "num_beams": 1,
            "num_beam_groups": 1,
            "diversity_penalty": 0,
            "length_penalty": 1,
        }
        changed = [name for name in names if given(name, neutral.get(name, False))]
        add(
            "beam search",
            *changed,
            *(name for name in ("constraints", "force_words_ids") if given(name)),
        )
    elif not sampled and above("penalty_alpha", 0) and above("top_k", 1, absent=50):
        add("contrastive search", "penalty_alpha")
    if given("num_return_sequences", 1):
        add("several texts for one prompt", "num_return_sequences")
    if sampled and given("top_h"):
        add("sampling by a share of the entropy", "top_h")
    if given("dola_layers"):
        add("decoding by contrasting layers", "dola_layers")
    if given("guidance_scale", 1):
        add("classifier-free guidance", "guidance_scale")
    if given("watermarking_config"):
        add("watermarks", "watermarking_config")
    if given("token_healing", False):
        add("other tokens for the prompt's end", "token_healing")
    if given("max_time"):
        add("a limit in seconds", "max_time")
    if given("is_assistant", False):
        add("the rules of a draft model", "is_assistant")
    if generation.get("cache_implementation") == "quantized":
        add("keys and values in few bits", "cache_implementation")
    return found


def unsupported_in_words(generation: Mapping[str, Any]) -> str | None:
    """One sentence on the fields that gptx does not obey; None where there are none."""
    found = unsupported(generation)
    if not found:
        return None
    listed = ", ".join(
        f"{name} {generation[name]!r:.40} ({reason})" for name, reason in found.items()
    )
    return f"generation_config.json asks for what gptx does not do: {listed}; text is generated without"


@dataclass(frozen=True)
class Rules:
    """What generation_config.json asks of lengths and logits. The defaults ask nothing. Names are transformers'."""

    max_length: int | None = None  # tokens of prompt and text together
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
        """The token ids that must be in the vocabulary, by field. (transformers passes over unknown ids that are
        suppressed, and fails at others.)"""
        forced_bos = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        return {
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "sequence_bias": [token for word, _ in self.sequence_bias for token in word],
            "forced_bos_token_id": list(forced_bos),
            "forced_eos_token_id": list(self.forced_eos_token_id),
        }


NO_RULES = Rules()
_SAMPLED = ("typical_p", "epsilon_cutoff", "eta_cutoff")  # without a draw they change nothing


def read_rules(generation: Mapping[str, Any], *, sampled: bool) -> tuple[Rules, list[str]]:
    """The rules of a generation_config.json, and what is wrong with it: a sentence for each field."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, (read, expected) in _READERS.items():
        value = generation.get(name)
        if value is None or (name in _SAMPLED and not sampled):
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
    """3.0 as 3, which some writers of JSON make of it and which transformers takes as a length; else the value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any) -> int:
    return max(_integer(value), 0)  # transformers takes a negative one as none


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
    return _number(value, 5e-324, 1.7e308)


def _typical(value: Any) -> float:
    return min(_number(value, 5e-324, math.inf), 1.0)  # 1 and more is off, as in transformers


def _cutoff(value: Any) -> float:
    cutoff = _number(value, -math.inf, math.inf)
    return cutoff if 0 < cutoff < 1 else 0.0  # else off, as in transformers


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
    biases: dict[
        tuple[int, ...], float
    ] = {}  # the last of two for the same sequence holds, as in transformers
    for pair in _list(value):
        word, bias = _list(pair)
        biases[_word(word)] = _number(bias, -math.inf, 1.7e308)
    return tuple(biases.items())


def _one_or_several(value: Any) -> tuple[int, ...]:
    return (
        tuple(_id(token) for token in value) if isinstance(value, list | tuple) else (_id(value),)
    )


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _list(value)
    return _integer(start), _number(factor, 0, 1.7e308)


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {  # field: how it is read, what is expected
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

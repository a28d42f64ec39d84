"""Turn the texts of dry_sequence_breakers into token ids, as llama.cpp does.

A token whose text holds the whole breaker is a breaker. A token that ends in the beginning of a
breaker is one together with the tokens of the rest (get_overlapping_token_sequences,
llama-sampler.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gptx.errors import UsageError
from gptx.generation.option_kinds import TokenIds
from gptx.generation.options import DEFAULTS, Options
from gptx.text.tokenizer import Tokenizer


def breakers_as_ids(options: Options, tokenizer: Tokenizer | None) -> Options:
    """The options with token ids in place of texts in dry_sequence_breakers.

    Raises UsageError for texts if there is no tokenizer. The default then breaks nothing.
    """
    breakers = options.dry_sequence_breakers
    texts = [text for text in breakers if isinstance(text, str)]
    if options.dry_multiplier == 0 or not texts:
        return options
    if tokenizer is None and breakers != DEFAULTS["dry_sequence_breakers"]:
        raise UsageError(
            "dry_sequence_breakers are texts, and the artifact has no tokenizer: give lists of"
            " token ids"
        )
    ids: set[TokenIds] = {word for word in breakers if not isinstance(word, str)}
    if tokenizer is not None:
        ids.update(word for text in texts for word in _sequences(text, tokenizer))
    return replace(options, dry_sequence_breakers=tuple(sorted(ids)))


def _sequences(breaker: str, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The sequences of tokens that hold the breaker and end with it, or hold it in one token."""
    rests = {
        breaker[:length]: tokenizer.continuation("\n", breaker[length:], add_special_tokens=False)
        for length in range(1, len(breaker))
    }
    for token, text in enumerate(tokenizer.texts):
        if breaker in text:
            yield (token,)
        else:
            yield from ((token, *rest) for begin, rest in rests.items() if text.endswith(begin))

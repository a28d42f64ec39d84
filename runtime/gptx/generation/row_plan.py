"""When a text ends: a prompt and options in, the tokens and the length that end it out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gptx.errors import PromptError, UsageError, shown
from gptx.generation.options import Options

MOST = 10**12  # tokens that no text will have
FinishReason = Literal["stop", "length", "context", "time", "closed"]  # see transcript.Completion


@dataclass(frozen=True)
class RowPlan:
    """A text ends at a token in `end_tokens`, or after `limit` new tokens.

    limit_reason: the finish reason at the limit.
    """

    end_tokens: frozenset[int]
    limit: int
    limit_reason: FinishReason

    def finish(self, token: int, length: int) -> FinishReason | None:
        """Why the text ends with this token, its `length`-th; None: it goes on."""
        if token in self.end_tokens:
            return "stop"
        return self.limit_reason if length == self.limit else None


def plan_row(
    options: Options, prompt_tokens: int, *, eos: Sequence[int], n_ctx: int, slides: bool
) -> RowPlan:
    """The plan of a text behind a prompt of this length.

    eos: tokens that end a text, in addition to options.stop_tokens. n_ctx: the most tokens that
    prompt and text may have. slides: a text may outgrow them (see overflow.py).
    """
    # The last token is not fed, so the limit is one more than the free places.
    limit: int = MOST if slides else n_ctx - prompt_tokens + 1
    reason: FinishReason = "context"
    max_length = options.rules.max_length
    asked = options.max_new_tokens if max_length is None else max_length - prompt_tokens
    if asked is not None and asked <= limit:
        limit, reason = asked, "length"
    return RowPlan(frozenset((*eos, *options.stop_tokens)), limit, reason)


def check_options(
    options: Options, end_tokens: Collection[int], *, tokenizer_vocab_size: int, vocab_size: int
) -> None:
    """Raise UsageError if an option names a token id that the model does not have.

    Forced tokens must be known to the tokenizer, too, as padded ids are never sampled.
    """
    beyond = sorted(token for token in end_tokens if not 0 <= token < vocab_size)
    if beyond:
        raise UsageError(
            f"stop token {shown(beyond[0])} is outside the vocabulary: 0 to {vocab_size - 1}"
        )
    for name, ids in options.named_ids().items():
        n_ids = tokenizer_vocab_size if name.startswith("forced") else vocab_size
        beyond = [token for token in ids if token >= n_ids and token not in end_tokens]
        if beyond:
            raise UsageError(
                f"{name} names token {shown(max(beyond))}, outside the vocabulary of 0 to "
                f"{n_ids - 1} (given by the call or by the artifact's generation_config.json)"
            )


def check_prompts(prompts: Sequence[Sequence[int]], *, n_ctx: int, max_length: int | None) -> None:
    """Raise PromptError for a prompt that is empty or too long.

    If there are several prompts, the message has the number of the wrong one.

    n_ctx: the most tokens that a row may hold.
    max_length: the limit of generation_config.json for prompt and new text together.
    """
    for index, prompt in enumerate(prompts):
        name = f"prompt {index + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        length = len(prompt)
        if not length:
            raise PromptError(f"{name} is empty: give it at least one token")
        if length > n_ctx:
            raise PromptError(f"{name} has {length} tokens, and the model's context holds {n_ctx}")
        if max_length is not None and length >= max_length:
            raise PromptError(
                f"{name} has {length} tokens, and the artifact's generation_config.json limits"
                f" prompt and text together to max_length {max_length}: give max_new_tokens"
            )

"""A caller's prompt in, checked token ids out.

A prompt is a text, or a list of token ids. This file does not know whether the ids fit into the
model's context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptx.arguments import integer, is_list
from gptx.errors import PromptError, UsageError, shown
from gptx.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


def encode(
    prompt: Prompt, *, tokenizer: Tokenizer | None, vocab_size: int, path: Path
) -> list[int]:
    """The token ids of a prompt.

    A text gets the special tokens that its tokenizer adds, for instance bos. Ids must be from 0 to
    vocab_size - 1. path: the artifact's folder, for the message.

    Raises PromptError for an empty text, an id out of range, or a prompt that is neither text nor
    ids; UsageError for a text if there is no tokenizer.
    """
    if not isinstance(prompt, str):
        return _check_ids(prompt, vocab_size)
    if tokenizer is None:
        raise UsageError(f"{path} has no tokenizer: give the prompt as token ids")
    if not prompt:
        raise PromptError("the prompt is empty: give some text to go on from")
    return tokenizer.encode(prompt)


def is_batch(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is a list of prompts, and not one prompt (a text or a list of token ids)."""
    return is_list(prompt) and len(prompt) > 0 and not _is_token_id(next(iter(prompt)))


def _check_ids(prompt: Sequence[int], vocab_size: int) -> list[int]:
    if not is_list(prompt) and not isinstance(prompt, Iterator):
        raise PromptError(f"a prompt is a text or a list of token ids, not {type(prompt).__name__}")
    ids, last = [], vocab_size - 1
    for token in map(_token_id, prompt):  # one by one: a generator may be endless
        if not 0 <= token <= last:
            raise PromptError(
                f"token id {shown(token)} is outside the model's vocabulary: 0 to {last}"
            )
        ids.append(token)
    return ids


def _token_id(value: Any) -> int:
    number = integer(value)
    if number is None:
        raise PromptError(
            f"a prompt is a text or a list of token ids, and this one holds {shown(value)}"
        )
    return number


def _is_token_id(value: object) -> bool:
    # A bool counts here, so that [True] is one wrong prompt and not a list of prompts.
    return integer(value) is not None or isinstance(value, bool)

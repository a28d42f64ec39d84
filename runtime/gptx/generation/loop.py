"""The token loop: prompts of token ids in, new token ids out, step by step.

A step computes one token for each row that has not ended. The loop knows no text. The code that
iterates over it finds stop strings, and ends a row with `finish`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

from gptx.errors import PromptError, UsageError, shown
from gptx.generation.options import Options
from gptx.generation.sampling import Sampler
from gptx.generation.session import Session

FinishReason = Literal["stop", "length", "context", "closed"]  # explained in stream.Completion


class Step(NamedTuple):
    """One new token of one row. `finish`: why the row ends with it; None: the row goes on."""

    row: int
    token: int
    finish: FinishReason | None


@dataclass(frozen=True)
class RowPlan:
    """How one row is sampled, and when it ends.

    The row ends at a token in `end_tokens`, or after `limit` new tokens; its finish reason is then
    `limit_reason`.
    """

    sampler: Sampler
    end_tokens: frozenset[int]
    limit: int
    limit_reason: FinishReason


class Generation:
    """An iterator over steps: each is a list with a Step for every row that has not ended.

    The first step feeds the prompts to the session. Each later step feeds the tokens of the step
    before. The token that ends a row is not fed.

    prompts: token ids for each row of the session. They are appended to the tokens that the row
    already holds.
    eos: tokens that end a row, in addition to options.stop_tokens.
    tokenizer_vocab_size: the number of ids that the tokenizer knows. If the model's vocabulary is
    padded to more, the additional ids are never sampled, unless they end a row.
    seeds: the seed of each row. Default: options.seed for all rows.

    Raises PromptError and UsageError if a prompt or an option does not suit the model.
    """

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        eos: Iterable[int] = (),
        tokenizer_vocab_size: int | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        tokenizer_vocab_size = tokenizer_vocab_size or session.vocab_size
        check_prompts(
            prompts, session.lengths, n_ctx=session.limit, max_length=options.rules.max_length
        )
        end_tokens = frozenset((*eos, *options.stop_tokens))
        check_options(
            options,
            end_tokens,
            tokenizer_vocab_size=tokenizer_vocab_size,
            vocab_size=session.vocab_size,
        )
        self._session, self._tokenizer_vocab_size = session, tokenizer_vocab_size
        self._padded_ends = sorted(token for token in end_tokens if token >= tokenizer_vocab_size)
        # Logits up to the last id that may be sampled
        self._width = max(tokenizer_vocab_size, *(token + 1 for token in self._padded_ends), 0)
        self._next: list[Sequence[int]] = list(prompts)
        self._counts = [0] * len(prompts)  # new tokens of each row
        self._active = list(range(len(prompts)))  # rows that have not ended
        self._plans = [
            self._plan(row, options, end_tokens, options.seed if seeds is None else seeds[row])
            for row in self._active
        ]

    def _plan(
        self, row: int, options: Options, end_tokens: frozenset[int], seed: int | None
    ) -> RowPlan:
        prompt = [*self._session.tokens[row], *self._next[row]]
        # The last token is not fed, so the limit is one more than the free places.
        limit: int = self._session.limit - len(prompt) + 1
        reason: FinishReason = "context"
        max_length = options.rules.max_length
        asked = options.max_new_tokens if max_length is None else max_length - len(prompt)
        if asked is not None and asked <= limit:
            limit, reason = asked, "length"
        sampler = Sampler(
            options,
            prompt=prompt,
            end_tokens=end_tokens,
            seed=seed,
            n_logits=self._width,
            max_length=len(prompt) + limit if reason == "length" else None,
        )
        return RowPlan(sampler, end_tokens, limit, reason)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Step]:
        if not self._active:
            raise StopIteration
        logits = self._session.advance(self._next)  # (B, V)
        steps = []
        for row in self._active:
            plan = self._plans[row]
            token = plan.sampler.sample(self._allowed(logits[row]))
            self._counts[row] += 1
            finish: FinishReason | None = None
            if token in plan.end_tokens:
                finish = "stop"
            elif self._counts[row] == plan.limit:
                finish = plan.limit_reason
            self._next[row] = (token,)
            steps.append(Step(row, token, finish))
        for step in steps:
            if step.finish:
                self.finish(step.row)
        return steps

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        """The logits (width,) of ids that may be sampled; padded ids are left out or -inf."""
        if not self._padded_ends:
            return logits[: self._tokenizer_vocab_size]
        padded = np.full(self._width, -np.inf, logits.dtype)
        padded[: self._tokenizer_vocab_size] = logits[: self._tokenizer_vocab_size]
        padded[self._padded_ends] = logits[self._padded_ends]
        return padded

    def finish(self, row: int) -> None:
        """End a row: later steps leave it out."""
        if row in self._active:
            self._active.remove(row)
            self._next[row] = ()


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


def check_prompts(
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    n_ctx: int,
    max_length: int | None,
) -> None:
    """Raise PromptError for a prompt that is empty or too long.

    If there are several prompts, the message has the number of the wrong one.

    lengths: the tokens that each row holds already, in front of its prompt.
    n_ctx: the most tokens that a row may hold.
    max_length: the limit of generation_config.json for prompt and new text together.
    """
    for index, (prompt, held) in enumerate(zip(prompts, lengths)):
        name = f"prompt {index + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        length = held + len(prompt)
        if not len(prompt):
            raise PromptError(f"{name} is empty: give it at least one token")
        if length > n_ctx:
            raise PromptError(f"{name} has {length} tokens, and the model's context holds {n_ctx}")
        if max_length is not None and length >= max_length:
            raise PromptError(
                f"{name} has {length} tokens, and the artifact's generation_config.json limits"
                f" prompt and text together to max_length {max_length}: give max_new_tokens"
            )

"""The token loop: prompts of token ids in, steps of token ids out, one for each row that is still going.

Knows nothing of text: who reads the steps may end a row (a stop string, say) with `finish`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

from gptx.errors import PromptError, UsageError, shown
from gptx.generation.options import Options
from gptx.generation.sampling import Sampler, picker
from gptx.generation.session import Session

FinishReason = Literal["stop", "length", "context", "closed"]  # "closed": whoever reads left early


class Step(NamedTuple):
    row: int
    token: int
    finish: FinishReason | None  # None: the row goes on


@dataclass(frozen=True)
class RowPlan:
    """What one row needs: its picker, the tokens that end it, and how many it may have."""

    pick: Sampler
    stops: frozenset[int]
    most: int
    at_most: FinishReason  # why it ends when it has that many


class Generation:
    """Iterate for lists of Steps. The first feeds the prompts, each later one the tokens before it.

    `prompts` are appended to the tokens that the session's rows already hold. Ids from
    `tokenizer_vocab_size` on are the empty end of a padded vocabulary: they are never picked,
    except those in `ends`. The token that ends a row is not fed to the model.
    """

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        ends: Iterable[int] = (),
        tokenizer_vocab_size: int | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        tokenizer_vocab_size = tokenizer_vocab_size or session.vocab_size
        check_prompts(
            prompts, session.lengths, limit=session.limit, longest=options.rules.max_length
        )
        stops = frozenset((*ends, *options.stop_tokens))
        check_options(
            options, stops, tokenizer_vocab_size=tokenizer_vocab_size, vocab_size=session.vocab_size
        )
        self._session, self._tokenizer_vocab_size = session, tokenizer_vocab_size
        self._padded_ends = sorted(token for token in stops if token >= tokenizer_vocab_size)
        self._width = max(tokenizer_vocab_size, *(token + 1 for token in self._padded_ends), 0)
        self._next: list[Sequence[int]] = list(prompts)
        self._counts = [0] * len(prompts)
        self._active = list(range(len(prompts)))
        self._plans = [
            self._plan(row, options, stops, options.seed if seeds is None else seeds[row])
            for row in self._active
        ]

    def _plan(self, row: int, options: Options, stops: frozenset[int], seed: int | None) -> RowPlan:
        prompt = [*self._session.tokens[row], *self._next[row]]
        most: int = (
            self._session.limit - len(prompt) + 1
        )  # the last token is not fed, so it needs no place
        at_most: FinishReason = "context"
        longest = options.rules.max_length
        asked = options.max_new_tokens if longest is None else longest - len(prompt)
        if asked is not None and asked <= most:
            most, at_most = asked, "length"
        last = len(prompt) + most if at_most == "length" else None
        pick = picker(
            options, prompt=prompt, stops=stops, seed=seed, n_logits=self._width, last=last
        )
        return RowPlan(pick, stops, most, at_most)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Step]:
        if not self._active:
            raise StopIteration
        logits = self._session.advance(self._next)
        steps = []
        for row in self._active:
            plan = self._plans[row]
            token = plan.pick(self._pickable(logits[row]))
            self._counts[row] += 1
            finish: FinishReason | None = None
            if token in plan.stops:
                finish = "stop"
            elif self._counts[row] == plan.most:
                finish = plan.at_most
            self._next[row] = (token,)
            steps.append(Step(row, token, finish))
        for step in steps:
            if step.finish:
                self.finish(step.row)
        return steps

    def _pickable(self, logits: np.ndarray) -> np.ndarray:
        """The logits of the ids that may be picked: those the tokenizer knows, and the ends in the padding."""
        if not self._padded_ends:
            return logits[: self._tokenizer_vocab_size]
        padded = np.full(self._width, -np.inf, logits.dtype)
        padded[: self._tokenizer_vocab_size] = logits[: self._tokenizer_vocab_size]
        padded[self._padded_ends] = logits[self._padded_ends]
        return padded

    def finish(self, row: int) -> None:
        """Leave this row out from now on."""
        if row in self._active:
            self._active.remove(row)
            self._next[row] = ()


def check_options(
    options: Options, stops: Collection[int], *, tokenizer_vocab_size: int, vocab_size: int
) -> None:
    """Raise UsageError for token ids that the model does not have, and for forced ones that cannot be picked."""
    beyond = sorted(token for token in stops if not 0 <= token < vocab_size)
    if beyond:
        raise UsageError(
            f"stop token {shown(beyond[0])} is outside the vocabulary: 0 to {vocab_size - 1}"
        )
    for field, ids in options.rules.ids().items():
        most = tokenizer_vocab_size if field.startswith("forced") else vocab_size
        beyond = [token for token in ids if token >= most and token not in stops]
        if beyond:
            raise UsageError(
                f"{field} names token {shown(max(beyond))}, outside the vocabulary of 0 to {most - 1}"
                " (from the artifact's generation_config.json)"
            )


def check_prompts(
    prompts: Sequence[Sequence[int]], held: Sequence[int], *, limit: int, longest: int | None
) -> None:
    """Raise PromptError for what cannot be run, naming the prompt where there are several. `held`: tokens that each row
    has already; `limit`: the model's context; `longest`: tokens of prompt and text together, where that is limited."""
    for index, (prompt, before) in enumerate(zip(prompts, held)):
        name = f"prompt {index + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        length = before + len(prompt)
        if not len(prompt):
            raise PromptError(f"{name} is empty: give it at least one token")
        if length > limit:
            raise PromptError(f"{name} has {length} tokens, and the model's context holds {limit}")
        if longest is not None and length >= longest:
            raise PromptError(
                f"{name} has {length} tokens, and the artifact's generation_config.json limits prompt and text together"
                f" to max_length {longest}: give max_new_tokens"
            )

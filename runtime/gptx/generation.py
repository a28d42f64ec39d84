"""The token loop: prompts of token ids in, steps of token ids out, one for each row that is still going.

Knows nothing of text: who reads the steps may end a row (a stop string, say) with `finish`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np

from gptx.errors import PromptError, UsageError
from gptx.options import Options
from gptx.sampling import Picker, picker
from gptx.session import Session

FinishReason = Literal["stop", "length", "context", "closed"]  # "closed": whoever reads left early


class Step(NamedTuple):
    row: int
    token: int
    finish: FinishReason | None  # None: the row goes on


@dataclass(frozen=True)
class RowPlan:
    """What one row needs: its picker, the tokens that end it, and how many it may have."""

    pick: Picker
    stops: frozenset[int]
    most: int
    at_most: FinishReason  # why it ends when it has that many


class Generation:
    """Iterate for lists of Steps. The first feeds the prompts, each later one the tokens before it.

    `prompts` are appended to what the session's rows hold. Ids from `known` on are never picked, for they are the empty
    end of a padded vocabulary; but an end of text may stand there. The token that ends a row is not fed any more.
    """

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        ends: Iterable[int] = (),
        known: int | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        check_prompts(session, prompts)
        stops = frozenset((*ends, *options.stop_tokens))
        known = known or session.vocab_size
        beyond = sorted(token for token in stops if not 0 <= token < session.vocab_size)
        if beyond:
            raise UsageError(f"stop token {beyond[0]} is outside the vocabulary: 0 to {session.vocab_size - 1}")
        self._session, self._known = session, known
        self._padded_ends = sorted(token for token in stops if token >= known)
        self._width = max(known, *(token + 1 for token in self._padded_ends), 0)
        self._next: list[Sequence[int]] = list(prompts)
        self._counts = [0] * len(prompts)
        self._active = list(range(len(prompts)))
        self._plans = [
            self._plan(row, options, stops, options.seed if seeds is None else seeds[row]) for row in self._active
        ]

    def _plan(self, row: int, options: Options, stops: frozenset[int], seed: int | None) -> RowPlan:
        prompt = [*self._session.tokens[row], *self._next[row]]
        pick = picker(options, prompt=[i for i in prompt if i < self._width], stops=stops, seed=seed)
        room = self._session.limit - len(prompt) + 1  # the last token is not fed, so it needs no place
        most = options.max_new_tokens
        if most is None or most > room:
            return RowPlan(pick, stops, room, "context")
        return RowPlan(pick, stops, most, "length")

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
        """The logits of the ids that may be picked: those that are known, and the ends in the padding."""
        if not self._padded_ends:
            return logits[: self._known]
        padded = np.full(self._width, -np.inf, logits.dtype)
        padded[: self._known] = logits[: self._known]
        padded[self._padded_ends] = logits[self._padded_ends]
        return padded

    def finish(self, row: int) -> None:
        """Leave this row out from now on."""
        if row in self._active:
            self._active.remove(row)
            self._next[row] = ()


def check_prompts(session: Session, prompts: Sequence[Sequence[int]]) -> None:
    """Raise PromptError for what cannot be run, naming the prompt where there are several."""
    for index, (prompt, held) in enumerate(zip(prompts, session.lengths)):
        name = f"prompt {index + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        if not len(prompt):
            raise PromptError(f"{name} is empty: give it at least one token")
        if held + len(prompt) > session.limit:
            raise PromptError(f"{name} has {held + len(prompt)} tokens, and the model's context holds {session.limit}")

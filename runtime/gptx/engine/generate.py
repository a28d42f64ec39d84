"""The work of generating one text: logits in, tokens and their text out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from gptx.engine.control import Control
from gptx.engine.speculation import Suffixes
from gptx.errors import UsageError, shown
from gptx.generation.row_plan import FinishReason, RowPlan
from gptx.generation.sampling import Sampler
from gptx.generation.transcript import Transcript


class Generate:
    """A text that grows by a token with each step; a Work of the engine (request.py).

    ids: the prompt. width: the number of logits that may be sampled from, which are those of
    tokenizer_vocab_size ids and, of a padded vocabulary, of the ids `padded_ends`.
    control: its hooks.
    """

    def __init__(
        self,
        ids: Sequence[int],
        plan: RowPlan,
        sampler: Sampler,
        transcript: Transcript,
        *,
        tokenizer_vocab_size: int,
        control: Control,
    ) -> None:
        self.tokens = list(ids)
        self.wanted_from = len(self.tokens) - 1
        self.longest: int = len(self.tokens) + plan.limit - 1  # the last token is not fed
        self.finish: FinishReason | None = None
        # Of speculation: guesses that are fed behind the last token, and where they come from
        self.drafts: list[int] = []
        self.match = 0
        self.suffixes: Suffixes | None = None
        self.transcript = transcript
        self._plan, self._sampler, self._control = plan, sampler, control
        self._vocab_size = tokenizer_vocab_size
        self._padded_ends = padded_ends(plan, tokenizer_vocab_size)

    def take(self, logits: np.ndarray, *, now: float, seconds: float) -> int:
        """Sample a token from the logits (1, V), and go on as long as drafts were right.

        With drafts, there are more logits: (1 + number of drafts, V).
        """
        held = len(self.tokens)
        for draft, row in zip_longest(self.drafts, logits):
            if self._next(row) != draft or self.finish:
                break
        self.drafts = []
        new = len(self.tokens) - held
        for _ in range(new):
            self.transcript.add_time(since_call=now - self.transcript.began, step=seconds / new)
        return held + new - 1

    def _next(self, logits: np.ndarray) -> int:
        """Sample a token from the logits (V,), and add it to the text."""
        token = self._sampler.sample(self._allowed(logits))
        finish: FinishReason | None = None
        if token in self._plan.end_tokens:
            finish = "stop"
        elif len(self.transcript.token_ids) + 1 == self._plan.limit:
            finish = self._plan.limit_reason
        piece = self.transcript.push(token, finish)
        self.finish = self.transcript.finish
        self.tokens.append(token)
        if self.suffixes is not None:
            self.suffixes.add(token)
        if self._control.on_token is not None:
            self._control.on_token(token, piece)
        return token

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        """The logits (width,) of ids that may be sampled; padded ids are left out or -inf."""
        if self._control.logits_processor is not None:
            logits = self._processed(logits.astype(np.float32))
        if not self._padded_ends:
            return logits[: self._vocab_size]
        padded = np.full(self._padded_ends[-1] + 1, -np.inf, logits.dtype)
        padded[: self._vocab_size] = logits[: self._vocab_size]
        padded[self._padded_ends] = logits[self._padded_ends]
        return padded

    def _processed(self, logits: np.ndarray) -> np.ndarray:
        """What the app's processor makes of the logits (V,). Raises UsageError for other values."""
        assert self._control.logits_processor is not None
        given = self._control.logits_processor(list(self.tokens), logits)
        if given is None:
            return logits
        if not isinstance(given, np.ndarray) or given.shape != logits.shape:
            raise UsageError(
                f"logits_processor returned {shown(given)}, expected None or an array of"
                f" {len(logits):,} logits"
            )
        return given.astype(np.float32)


def padded_ends(plan: RowPlan, tokenizer_vocab_size: int) -> list[int]:
    """The end tokens that the tokenizer does not know: ids of a padded vocabulary."""
    return sorted(token for token in plan.end_tokens if token >= tokenizer_vocab_size)


def logits_to_sample(plan: RowPlan, tokenizer_vocab_size: int) -> int:
    """The number of logits that a sampler gets: up to the last id that may be sampled."""
    ends = padded_ends(plan, tokenizer_vocab_size)
    return ends[-1] + 1 if ends else tokenizer_vocab_size

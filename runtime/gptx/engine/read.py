"""The work of reading given tokens: log-probabilities of tokens, or the logits behind the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptx.generation.row_plan import FinishReason
from gptx.softmax import logsumexp


class LastLogits:
    """The logits behind the last of some tokens; a Work of the engine (request.py).

    logits: float64 (V,), once the work has ended.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.tokens = list(ids)
        self.wanted_from = len(self.tokens) - 1
        self.longest = len(self.tokens)
        self.generated = 0
        self.finish: FinishReason | None = None
        self.logits = np.empty(0)

    def take(self, logits: np.ndarray, *, now: float, seconds: float) -> int:
        """Keep the logits (1, V)."""
        self.logits, self.finish = logits[-1].astype(np.float64), "length"
        return len(self.tokens)


class Logprobs:
    """log P(token | all tokens in front of it), in nats, of the tokens from index `first` on.

    A Work of the engine (request.py). first: 1 or more. values: those that are known so far.
    """

    def __init__(self, ids: Sequence[int], first: int) -> None:
        self.tokens = list(ids[:-1])
        self.wanted_from = first - 1
        self.longest = len(self.tokens)
        self.generated = 0
        self.finish: FinishReason | None = None
        self.values: list[float] = []
        self._targets = list(ids[first:])

    def take(self, logits: np.ndarray, *, now: float, seconds: float) -> int:
        """Look up the next tokens in the logits (n, V)."""
        done = len(self.values)
        targets = np.array(self._targets[done : done + len(logits)])
        found = logits[np.arange(len(logits)), targets]
        self.values += (found - logsumexp(logits)).tolist()
        if len(self.values) == len(self._targets):
            self.finish = "length"
        return self.wanted_from + len(self.values)

"""The work of reading given tokens: log-probabilities of tokens, or the logits behind the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptx.engine.request import Row
from gptx.generation.row_plan import FinishReason
from gptx.softmax import logsumexp


class LastLogits:
    """The logits behind the last of some tokens; a Work of the engine (request.py).

    logits: float64 (V,), once the work has ended.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.rows = [Row(list(ids), wanted_from=len(ids) - 1)]
        self.longest = len(ids)
        self.generated = 0
        self.finish: FinishReason | None = None
        self.logits = np.empty(0)

    def take(self, logits: Sequence[np.ndarray], *, now: float, seconds: float) -> None:
        """Keep the logits (1, V) of the row."""
        self.logits, self.finish = logits[0][-1].astype(np.float64), "length"


class Logprobs:
    """log P(token | all tokens in front of it), in nats, of the tokens from index `first` on.

    A Work of the engine (request.py). first: 1 or more. values: those that are known so far.
    """

    def __init__(self, ids: Sequence[int], first: int) -> None:
        self.rows = [Row(list(ids[:-1]), wanted_from=first - 1)]
        self.longest = len(ids) - 1
        self.generated = 0
        self.finish: FinishReason | None = None
        self.values: list[float] = []
        self._targets = list(ids[first:])

    def take(self, logits: Sequence[np.ndarray], *, now: float, seconds: float) -> None:
        """Look up the next tokens in the logits (n, V) of the row."""
        done = len(self.values)
        self.values += logprobs_of(logits[0], self._targets[done : done + len(logits[0])])
        if len(self.values) == len(self._targets):
            self.finish = "length"


def logprobs_of(logits: np.ndarray, tokens: Sequence[int]) -> list[float]:
    """The log-probability of token i behind logits i, in nats. logits: (n, V)."""
    found = logits[np.arange(len(logits)), np.array(tokens)]
    return (found - logsumexp(logits)).tolist()

"""Log-probabilities that a call asks for: of tokens, and of the likeliest ones."""

from __future__ import annotations

import numpy as np

from gptx.generation.filters import top_k
from gptx.softmax import log_softmax


class Logprobs:
    """Log-probabilities behind one token, from logits (V,).

    top: those of the `n_top` likeliest tokens, by token id. Of equally likely ones, the lowest ids.
    """

    def __init__(self, logits: np.ndarray, n_top: int) -> None:
        self._values = log_softmax(logits)
        n = min(n_top, len(logits))
        likeliest = top_k(self._values, n).tolist() if n else []
        ordered = sorted(likeliest, key=lambda token: (-self._values[token], token))[:n]
        self.top = {token: float(self._values[token]) for token in ordered}

    def of(self, token: int) -> float:
        """The log-probability of a token."""
        return float(self._values[token])

"""Log-probabilities that a call asks for: of tokens, and of the likeliest ones."""

from __future__ import annotations

import numpy as np

from gptx.softmax import log_softmax


class Logprobs:
    """Log-probabilities behind one token, from logits (V,).

    top: those of the `n_top` likeliest tokens, by token id.
    """

    def __init__(self, logits: np.ndarray, n_top: int) -> None:
        self._values = log_softmax(logits)
        n = min(n_top, len(logits))
        likeliest = np.argpartition(-self._values, n - 1)[:n] if n else []
        ordered = sorted(map(int, likeliest), key=lambda token: (-self._values[token], token))
        self.top = {token: float(self._values[token]) for token in ordered}

    def of(self, token: int) -> float:
        """The log-probability of a token."""
        return float(self._values[token])

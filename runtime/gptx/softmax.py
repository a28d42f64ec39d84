"""Softmax in log space, over the last axis, in the precision of the logits."""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (..., V) from logits (..., V)."""
    return logits - logsumexp(logits)[..., None]


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) over the last axis: (..., V) -> (...)."""
    # The maximum is subtracted so that exp cannot overflow.
    top = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1)) + top[..., 0]

"""Classifier-free guidance: logits are pushed away from those behind a negative prompt."""

from __future__ import annotations

import numpy as np

from gptx.softmax import log_softmax


def guided(logits: np.ndarray, negative: np.ndarray, scale: float) -> np.ndarray:
    """The logits behind the prompt, away from those behind the negative prompt; float32 (V,).

    scale: 1 changes nothing, more pushes further (Ho and Salimans 2022,
    https://arxiv.org/abs/2207.12598; transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor).
    """
    towards, away = (log_softmax(one).astype(np.float32) for one in (logits, negative))
    return np.float32(scale) * (towards - away) + away

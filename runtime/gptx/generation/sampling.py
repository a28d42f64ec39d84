"""Sample the tokens of one row, each from the logits of one step.

First come the logits processors (logits_processors.py). Then greedy decoding takes the likeliest
token, or a token is drawn at random from those that the filters leave (filters.py). This file knows
no text.

V: the number of logits.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from gptx.errors import ArtifactError, UsageError
from gptx.generation.filters import Candidates, candidates, not_numbers, xtc
from gptx.generation.logits_processors import processors
from gptx.generation.options import Options

CHUNK = 512  # weights whose sum is taken before it is known which of them is drawn


class Sampler:
    """The sampler of one row: logits in, a token id out, step by step.

    It holds the row's tokens. The random draw of a token depends only on the seed and on the number
    of tokens sampled before it. So a text does not depend on which rows decode together, and a copy
    goes on as the original does.
    """

    def __init__(
        self,
        options: Options,
        *,
        prompt: Sequence[int],
        end_tokens: Iterable[int],
        seed: int | None,
        n_logits: int,
        max_length: int | None = None,
        min_tokens_to_keep: int = 1,
    ) -> None:
        """Choose the processors that the options ask for.

        prompt, end_tokens, n_logits, max_length: see `processors`.
        seed: 0 to 2**256 - 1. None: a random one. Greedy decoding draws nothing.
        min_tokens_to_keep: the tokens that each filter leaves at least. transformers takes 1, and
        for beams one more than there are end tokens.
        """
        self._processors = processors(
            options, prompt=prompt, end_tokens=end_tokens, max_length=max_length, n_logits=n_logits
        )
        self._options, self._keep = options, min_tokens_to_keep
        self._key = os.urandom(32) if seed is None else seed.to_bytes(32, "little")
        self._start = self._length = len(prompt)
        # The first `_length` entries are the row's tokens; the others are free.
        self._history = np.array(prompt, np.int64)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the row: the prompt and what was sampled after it."""
        return self._history[: self._length].tolist()

    def sample(self, logits: np.ndarray) -> int:
        """The next token, which is added to `tokens`.

        logits: float32 (V,), which may be overwritten.

        Raises ArtifactError for logits that are not finite, UsageError if the options forbid every
        token. Then nothing is added.
        """
        logits = self.process(logits)
        try:
            token = greedy(logits) if self._options.temperature == 0 else self._draw(logits)
        except ArtifactError:
            # Bans, of an app's own processor too, make all logits -inf; a damaged model gives NaN.
            if np.isneginf(logits).all():
                raise nothing_left() from None
            raise
        self.append(token)
        return token

    def process(self, logits: np.ndarray) -> np.ndarray:
        """The logits after the processors, float32 (V,). A forbidden token has -inf.

        May overwrite `logits`.
        """
        logits = logits.astype(np.float32, copy=False)  # a penalty could overflow float16
        for process in self._processors:
            process(logits, self._history[: self._length])
        return logits

    def candidates(self, processed: np.ndarray) -> Candidates:
        """The tokens that may be drawn next, by ids and weights, from the result of `process`.

        ids: None for all. The weights are proportional to probabilities. May overwrite `processed`.

        Raises ArtifactError for logits that are not finite.
        """
        options = self._options
        found = candidates(processed, options, keep=self._keep)
        if options.xtc_probability > 0 and self._uniforms()[1] < options.xtc_probability:
            found = xtc(found, options.xtc_threshold, keep=self._keep)
        return found

    def append(self, token: int) -> None:
        """Add a token that was chosen elsewhere, for instance by a search with beams."""
        if self._length == len(self._history):
            self._history = np.resize(self._history, 2 * self._length + 64)
        self._history[self._length] = token
        self._length += 1

    def copy(self) -> Self:
        """A sampler that goes on from here by itself, and samples what this one would."""
        twin = copy.copy(self)
        twin._history = self._history.copy()
        return twin

    def _draw(self, logits: np.ndarray) -> int:
        ids, weights = self.candidates(logits)
        index = draw_index(weights, self._uniforms()[0])
        return index if ids is None else int(ids[index])

    def _uniforms(self) -> tuple[float, float]:
        """Two random numbers for the next token: for the draw, and for xtc."""
        return uniforms(self._key, self._length - self._start)


def greedy(logits: np.ndarray) -> int:
    """The likeliest token. Raises ArtifactError for logits that are not finite."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # a NaN wins argmax
        raise not_numbers()
    return token


def uniforms(key: bytes, count: int) -> tuple[float, float]:
    """Two random numbers from 0 to 1 (1 excluded) that depend only on key and count.

    A keyed hash of the count: BLAKE2b (RFC 7693). A counter-based generator of numpy (Philox) would
    take ten times as long for two numbers.

    key: at most 64 bytes.
    """
    digest = hashlib.blake2b(count.to_bytes(8, "little"), key=key, digest_size=16).digest()
    first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    return (first >> 11) / 2**53, (second >> 11) / 2**53  # a float64 has 53 bits


def draw_index(weights: np.ndarray, share: float) -> int:
    """The first index whose cumulative share of all weights exceeds `share` (0 to 1).

    Looks for the chunk first, then for the index in the chunk: this is faster than a cumulative sum
    over all.
    """
    chunks = len(weights) // CHUNK if len(weights) > 4 * CHUNK else 0
    if not chunks:
        return _inverse(weights.cumsum(dtype=np.float64), share)
    sums = np.empty(chunks + 1)
    weights[: chunks * CHUNK].reshape(chunks, CHUNK).sum(axis=1, out=sums[:-1])
    sums[-1] = weights[chunks * CHUNK :].sum()
    ends = sums.cumsum()
    chunk = _inverse(ends, share)
    part = weights[chunk * CHUNK : (chunk + 1) * CHUNK if chunk < chunks else None]
    left = (share * ends[-1] - (ends[chunk] - sums[chunk])) / sums[chunk]
    return chunk * CHUNK + _inverse(part.cumsum(dtype=np.float64), min(max(left, 0.0), 1.0))


def _inverse(ends: np.ndarray, share: float) -> int:
    """The first index whose cumulative weight exceeds `share`, never one of weight 0.

    ends: the cumulative weights.
    """
    total = ends[-1]
    index = int(ends.searchsorted(share * total, side="right"))
    return index if index < len(ends) else int(ends.searchsorted(total))


def nothing_left() -> UsageError:
    """The error where no token may come next."""
    return UsageError(
        "the options forbid every token: look at stop_tokens with min_new_tokens, at the tokens"
        " that the call or the artifact's generation_config.json suppresses, and at the call's"
        " logits_processor"
    )

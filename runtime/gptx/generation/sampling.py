"""Sample the tokens of one row, each from the logits of one step.

First come the logits processors (logits_processors.py). Then greedy decoding takes the likeliest
token, or a token is drawn at random from those that temperature, top_k, top_p, min_p, typical_p,
epsilon_cutoff and eta_cutoff leave. The order and meaning of all these are those of transformers.
This file knows no text.

V: the number of logits. Weights are proportional to probabilities; they need not add up to 1.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import numpy as np

from gptx.errors import ArtifactError, UsageError
from gptx.generation.logits_processors import processors
from gptx.generation.options import Options
from gptx.softmax import exp_weights

Filter = Callable[[np.ndarray], np.ndarray]  # weights -> the indices that are kept

# Above this temperature all tokens are equally likely in float32.
HIGHEST_TEMPERATURE = 1e30
# Below this one, float32 cannot tell the probabilities from those of greedy decoding.
LOWEST_TEMPERATURE = 1e-6
# Values per chunk. Chunks that cannot hold the result are skipped as a whole, as a look at each of
# 50,000 logits would take a noticeable part of a decode step.
CHUNK = 64


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
    ) -> None:
        """Choose the processors and filters that the options ask for.

        prompt, end_tokens, n_logits, max_length: see `processors`.
        seed: 0 to 2**256 - 1. None: a random one. Greedy decoding draws nothing.
        """
        self._processors = processors(
            options, prompt=prompt, end_tokens=end_tokens, max_length=max_length, n_logits=n_logits
        )
        self._options, self._filters = options, _rarer_filters(options)
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
        logits = logits.astype(np.float32, copy=False)  # a penalty could overflow float16
        for process in self._processors:
            process(logits, self._history[: self._length])
        try:
            token = greedy(logits) if self._options.temperature == 0 else self._draw(logits)
        except ArtifactError:
            # The processors' bans make all logits -inf; a damaged model gives NaN.
            if self._processors and np.isneginf(logits).all():
                raise _nothing_left() from None
            raise
        self._append(token)
        return token

    def copy(self) -> Self:
        """A sampler that goes on from here by itself, and samples what this one would."""
        twin = copy.copy(self)
        twin._history = self._history.copy()
        return twin

    def _append(self, token: int) -> None:
        if self._length == len(self._history):
            self._history = np.resize(self._history, 2 * self._length + CHUNK)
        self._history[self._length] = token
        self._length += 1

    def _draw(self, logits: np.ndarray) -> int:
        options = self._options
        ids, weights = filter_logits(
            logits,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
        for kept in self._filters:
            ids, weights = _narrow(ids, weights, kept(weights))
        index = draw_index(weights, uniform(self._key, self._length - self._start))
        return index if ids is None else int(ids[index])


def uniform(key: bytes, count: int) -> float:
    """A random number from 0 to 1 (1 excluded) that depends only on key and count.

    A keyed hash of the count: BLAKE2b (RFC 7693). A counter-based generator of numpy (Philox) would
    take ten times as long for a single number.

    key: at most 64 bytes.
    """
    digest = hashlib.blake2b(count.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53  # a float64 has 53 bits


def greedy(logits: np.ndarray) -> int:
    """The likeliest token. Raises ArtifactError for logits that are not finite."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # a NaN wins argmax
        raise _not_numbers()
    return token


def _rarer_filters(options: Options) -> list[Filter]:
    """typical_p, epsilon_cutoff and eta_cutoff, as far as the options ask for them."""
    rules = options.rules
    filters: list[Filter] = []
    if rules.typical_p < 1:
        filters.append(lambda weights: typical(weights, rules.typical_p))
    if rules.epsilon_cutoff > 0:
        filters.append(lambda weights: likely(weights, rules.epsilon_cutoff))
    if rules.eta_cutoff > 0:
        filters.append(lambda weights: likely(weights, eta(weights, rules.eta_cutoff)))
    return filters


def filter_logits(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids of the tokens that may be drawn (None: all ids), and their weights.

    The likeliest token has weight 1. Overwrites `logits`, because allocating an array of 50,000
    takes time. Tokens are left out as early as possible, so that later filters have less to do.

    Raises ArtifactError for logits that are not finite.
    """
    temperature = min(max(temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE)
    top = float(logits.max())
    if not math.isfinite(top):
        raise _not_numbers()
    ids, weights = None, logits
    if 0 < top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, top_k))  # ties stay, as in transformers
        weights = logits[ids]
    if min_p > 0 and top_p == 1:
        ids, weights = _narrow(
            ids, weights, np.flatnonzero(weights >= top + temperature * math.log(min_p))
        )
    weights = weights.astype(np.float32, copy=False)
    exp_weights(weights, top, temperature, out=weights)
    if top_p < 1:
        ids, weights = _narrow(ids, weights, nucleus(weights, top_p))
        # The likeliest token has weight 1, so min_p is the least weight.
        ids, weights = _narrow(ids, weights, np.flatnonzero(weights >= min_p))
    return ids, weights


def _narrow(
    ids: np.ndarray | None, weights: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the entries with the indices `kept`."""
    return kept if ids is None else ids[kept], weights[kept]


def kth_largest(values: np.ndarray, k: int) -> float:
    """The k-th largest value.

    np.partition of 50,000 values takes 0.25 ms, so most values are left out before.
    """
    chunks = len(values) // CHUNK
    if k <= chunks:
        # The k-th largest maximum of a chunk is a lower bound: k chunks have a value at least as
        # large.
        maxima = values[: chunks * CHUNK].reshape(CHUNK, chunks).max(axis=0)
        values = values[values >= np.partition(maxima, chunks - k)[chunks - k]]
    return np.partition(values, len(values) - k)[len(values) - k]


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest largest weights whose share is at least top_p, largest first.

    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.)
    """
    total = weights.sum(dtype=np.float64)
    # Weights below (1 - top_p) / V of the total add up to less than a share of 1 - top_p. So none
    # of them is in the nucleus, and they need not be sorted.
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(before, top_p * total)) + 1]


def typical(weights: np.ndarray, mass: float) -> np.ndarray:
    """Indices for locally typical sampling (Meister et al. 2022, https://arxiv.org/abs/2202.00666).

    The tokens whose surprise, -log p, is nearest to the entropy, as many as have the probability
    `mass` together.
    """
    shares, surprises = _shares(weights)
    distances = np.abs(surprises - _entropy(shares, surprises))
    order = np.argsort(distances, kind="stable")
    enough = int((np.cumsum(shares[order]) < mass).sum())
    return np.flatnonzero(distances <= distances[order[min(enough, len(order) - 1)]])


def likely(weights: np.ndarray, least: float) -> np.ndarray:
    """Indices of the tokens with a probability of at least `least`, and of the likeliest token.

    (Epsilon sampling, Hewitt et al. 2022, https://arxiv.org/abs/2210.15191.)
    """
    return np.flatnonzero((_shares(weights)[0] >= least) | (weights == weights.max()))


def eta(weights: np.ndarray, cutoff: float) -> float:
    """The least probability of eta sampling: the higher the entropy, the lower it is.

    (Hewitt et al. 2022, https://arxiv.org/abs/2210.15191.)
    """
    return min(cutoff, math.sqrt(cutoff) * math.exp(-_entropy(*_shares(weights))))


def _shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token's probability and its surprise -log p, in float64."""
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    with np.errstate(divide="ignore"):
        return shares, -np.log(shares)


def _entropy(shares: np.ndarray, surprises: np.ndarray) -> float:
    positive = shares > 0
    return float((shares[positive] * surprises[positive]).sum())


def draw_index(weights: np.ndarray, share: float) -> int:
    """The first index whose cumulative share of all weights exceeds `share` (0 to 1).

    Looks for the chunk first, then for the index in the chunk: this is faster than a cumulative sum
    over all.
    """
    chunks = len(weights) // CHUNK if len(weights) > 32 * CHUNK else 0
    if not chunks:
        return _inverse(np.cumsum(weights, dtype=np.float64), share)
    whole = weights[: chunks * CHUNK].reshape(chunks, CHUNK)
    sums = np.empty(chunks + 1)
    whole.sum(axis=1, out=sums[:-1])
    sums[-1] = weights[chunks * CHUNK :].sum()
    ends = np.cumsum(sums)
    chunk = _inverse(ends, share)
    part = weights[chunk * CHUNK : (chunk + 1) * CHUNK if chunk < chunks else None]
    left = (share * ends[-1] - (ends[chunk] - sums[chunk])) / sums[chunk]
    return chunk * CHUNK + _inverse(np.cumsum(part, dtype=np.float64), min(max(left, 0.0), 1.0))


def _inverse(ends: np.ndarray, share: float) -> int:
    """The first index whose cumulative weight exceeds `share`, never one of weight 0.

    ends: the cumulative weights.
    """
    total = ends[-1]
    index = int(np.searchsorted(ends, share * total, side="right"))
    return index if index < len(ends) else int(np.searchsorted(ends, total))


def _nothing_left() -> UsageError:
    return UsageError(
        "the options forbid every token: look at stop_tokens with min_new_tokens, and at the tokens"
        " that the artifact's generation_config.json suppresses"
    )


def _not_numbers() -> ArtifactError:
    return ArtifactError(
        "the model's logits are not finite numbers: its weights are damaged, or overflow in its"
        " precision"
    )

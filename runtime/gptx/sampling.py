"""From one row's logits to a token id: pure functions, and `picker`, which chooses among them once, before the loop.

In order and meaning as Hugging Face's logits processors: repetition penalty, no end before min_new_tokens, then (where
temperature is not 0) temperature, top_k, top_p, min_p, and a draw from what is left. Knows nothing of text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from gptx.errors import ArtifactError
from gptx.options import Options

Picker = Callable[[np.ndarray], int]  # float32 logits (V,), which it may overwrite -> token id

CHUNK = 64  # how many values are looked at as one where all 50,000 would cost more than the model's step allows


def picker(options: Options, *, prompt: Iterable[int], stops: Iterable[int], seed: int | None) -> Picker:
    """What chooses the tokens of one row: it carries that row's generator, and the tokens that a penalty must know."""
    draw = greedy if options.temperature == 0 else drawer(options, seed)
    if options.repetition_penalty == 1 and options.min_new_tokens == 0:
        return draw
    seen, forbidden, picked = set(prompt), np.array(sorted(stops), np.int64), 0

    def pick(logits: np.ndarray) -> int:
        nonlocal picked
        if options.repetition_penalty != 1:
            penalize(logits, np.fromiter(seen, np.int64, len(seen)), options.repetition_penalty)
        if picked < options.min_new_tokens:
            logits[forbidden] = -np.inf
        token = draw(logits)
        seen.add(token)
        picked += 1
        return token

    return pick


def greedy(logits: np.ndarray) -> int:
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # a NaN wins argmax
        raise _not_numbers()
    return token


def drawer(options: Options, seed: int | None) -> Picker:
    generator = np.random.Generator(np.random.PCG64(seed))

    def draw(logits: np.ndarray) -> int:
        ids, weights = keep(
            logits, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p
        )
        index = pick_weighted(weights, generator.random())
        return index if ids is None else int(ids[index])

    return draw


def penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Make the tokens in `seen` less likely, in place, each once however often it occurred (Keskar et al. 2019)."""
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def keep(
    logits: np.ndarray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that may be drawn (None: all of them) and their weights, in proportion to their probabilities.

    Overwrites `logits`: an array of 50,000 is work to allocate. What can be left out is left out before the rest.
    """
    temperature = max(temperature, 1e-6)  # a float32 cannot tell smaller ones from 0
    top = float(logits.max())
    if not math.isfinite(top):
        raise _not_numbers()
    ids, weights = None, logits
    if 0 < top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, top_k))  # ties stay, as in Hugging Face
        weights = logits[ids]
    if min_p > 0 and top_p == 1:
        ids, weights = _narrow(ids, weights, np.flatnonzero(weights >= top + temperature * math.log(min_p)))
    weights -= top
    weights /= temperature
    np.exp(weights, out=weights)
    if top_p < 1:
        ids, weights = _narrow(ids, weights, nucleus(weights, top_p))
        ids, weights = _narrow(ids, weights, np.flatnonzero(weights >= min_p))  # the likeliest weighs 1
    return ids, weights


def _narrow(ids: np.ndarray | None, weights: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return kept if ids is None else ids[kept], weights[kept]


def kth_largest(values: np.ndarray, k: int) -> float:
    """The k-th largest value. Sorting out 50,000 takes 0.25 ms, so this looks at the largest of each chunk first."""
    chunks = len(values) // CHUNK
    if k <= chunks:  # k chunks have something at least as large as the k-th largest of their maxima
        maxima = values[: chunks * CHUNK].reshape(CHUNK, chunks).max(axis=0)
        values = values[values >= np.partition(maxima, chunks - k)[chunks - k]]
    return np.partition(values, len(values) - k)[len(values) - k]


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest largest weights whose share is at least top_p, largest first."""
    total = weights.sum(dtype=np.float64)
    # what is below (1 - top_p) / V of the total adds up to less than 1 - top_p: none of it is in the nucleus
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(before, top_p * total)) + 1]


def pick_weighted(weights: np.ndarray, uniform: float) -> int:
    """The index at the share `uniform` (0 to 1) of all weights: first the chunk, then the place in it."""
    chunks = len(weights) // CHUNK if len(weights) > 32 * CHUNK else 0
    if not chunks:
        return _inverse(np.cumsum(weights, dtype=np.float64), uniform)
    whole = weights[: chunks * CHUNK].reshape(chunks, CHUNK)
    sums = np.empty(chunks + 1)
    whole.sum(axis=1, out=sums[:-1])
    sums[-1] = weights[chunks * CHUNK :].sum()
    ends = np.cumsum(sums)
    chunk = _inverse(ends, uniform)
    part = weights[chunk * CHUNK : (chunk + 1) * CHUNK if chunk < chunks else None]
    left = (uniform * ends[-1] - (ends[chunk] - sums[chunk])) / sums[chunk]
    return chunk * CHUNK + _inverse(np.cumsum(part, dtype=np.float64), min(max(left, 0.0), 1.0))


def _inverse(ends: np.ndarray, uniform: float) -> int:
    """The first index whose cumulative weight is over the share `uniform`: never one of weight 0."""
    total = ends[-1]
    index = int(np.searchsorted(ends, uniform * total, side="right"))
    return index if index < len(ends) else int(np.searchsorted(ends, total))


def _not_numbers() -> ArtifactError:
    return ArtifactError(
        "the model's logits are not finite numbers: its weights are damaged, or overflow in its precision"
    )

"""From one row's logits to a token id: pure functions, and `picker`, which chooses among them once, before the loop.

First the logits processors (logits_processors.py). Then the likeliest token, or (where temperature is not 0) a draw from
what temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff and eta_cutoff leave. Order and meaning are Hugging
Face's. Knows nothing of text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gptx.errors import ArtifactError, UsageError
from gptx.generation.logits_processors import processors
from gptx.generation.options import Options

Sampler = Callable[[np.ndarray], int]  # float32 logits (V,), which it may overwrite -> token id

HOTTEST = 1e30  # more makes no difference: all tokens are equally likely
CHUNK = 64  # how many values are looked at as one where all 50,000 would cost more than the model's step allows


def picker(
    options: Options,
    *,
    prompt: Sequence[int],
    stops: Iterable[int],
    seed: int | None,
    n_logits: int,
    last: int | None = None,
) -> Sampler:
    """What chooses the tokens of one row: it carries that row's generator, and the tokens that a penalty must know.
    `n_logits`, `last`: see `processors`."""
    draw = greedy if options.temperature == 0 else drawer(options, seed)
    chosen = processors(options, prompt=prompt, ends=stops, last=last, n_logits=n_logits)
    if not chosen:
        return draw
    tokens = list(prompt)

    def pick(logits: np.ndarray) -> int:
        logits = logits.astype(np.float32, copy=False)  # a factor could overflow float16
        for process in chosen:
            process(logits, tokens)
        try:
            token = draw(logits)
        except ArtifactError:
            if np.isneginf(logits).all():  # by our bans: a damaged model gives NaN
                raise _nothing_left() from None
            raise
        tokens.append(token)
        return token

    return pick


def greedy(logits: np.ndarray) -> int:
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # a NaN wins argmax
        raise _not_numbers()
    return token


def drawer(options: Options, seed: int | None) -> Sampler:
    generator = np.random.Generator(np.random.PCG64(seed))
    rules = options.rules
    narrowed: list[Callable[[np.ndarray], np.ndarray]] = []
    if rules.typical_p < 1:
        narrowed.append(lambda weights: typical(weights, rules.typical_p))
    if rules.epsilon_cutoff > 0:
        narrowed.append(lambda weights: likely(weights, rules.epsilon_cutoff))
    if rules.eta_cutoff > 0:
        narrowed.append(lambda weights: likely(weights, eta(weights, rules.eta_cutoff)))

    def draw(logits: np.ndarray) -> int:
        ids, weights = filter_logits(
            logits,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
        for narrow in narrowed:
            ids, weights = _narrow(ids, weights, narrow(weights))
        index = pick_weighted(weights, generator.random())
        return index if ids is None else int(ids[index])

    return draw


def filter_logits(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that may be drawn (None: all of them) and their weights, in proportion to their probabilities.

    Overwrites `logits`: an array of 50,000 is work to allocate. What can be left out is left out before the rest.
    """
    temperature = min(max(temperature, 1e-6), HOTTEST)  # a float32 cannot tell smaller ones from 0
    top = float(logits.max())
    if not math.isfinite(top):
        raise _not_numbers()
    ids, weights = None, logits
    if 0 < top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, top_k))  # ties stay, as in Hugging Face
        weights = logits[ids]
    if min_p > 0 and top_p == 1:
        ids, weights = _narrow(
            ids, weights, np.flatnonzero(weights >= top + temperature * math.log(min_p))
        )
    weights -= top
    weights /= temperature
    np.exp(weights, out=weights)
    if top_p < 1:
        ids, weights = _narrow(ids, weights, nucleus(weights, top_p))
        ids, weights = _narrow(
            ids, weights, np.flatnonzero(weights >= min_p)
        )  # the likeliest weighs 1
    return ids, weights


def _narrow(
    ids: np.ndarray | None, weights: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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


def typical(weights: np.ndarray, mass: float) -> np.ndarray:
    """Indices of the tokens whose surprise is nearest to the entropy, and whose share is at least `mass` (Meister et al.
    2022, locally typical sampling)."""
    shares, surprises = _shares(weights)
    distances = np.abs(surprises - _entropy(shares, surprises))
    order = np.argsort(distances, kind="stable")
    enough = int((np.cumsum(shares[order]) < mass).sum())
    return np.flatnonzero(distances <= distances[order[min(enough, len(order) - 1)]])


def likely(weights: np.ndarray, least: float) -> np.ndarray:
    """Indices of the tokens of at least this probability, and of the likeliest (Hewitt et al. 2022)."""
    return np.flatnonzero((_shares(weights)[0] >= least) | (weights == weights.max()))


def eta(weights: np.ndarray, cutoff: float) -> float:
    """The least probability of eta sampling: it falls where the entropy is high (Hewitt et al. 2022)."""
    return min(cutoff, math.sqrt(cutoff) * math.exp(-_entropy(*_shares(weights))))


def _shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token's probability and its surprise -log p, in float64."""
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    with np.errstate(divide="ignore"):
        return shares, -np.log(shares)


def _entropy(shares: np.ndarray, surprises: np.ndarray) -> float:
    there = shares > 0
    return float((shares[there] * surprises[there]).sum())


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


def _nothing_left() -> UsageError:
    return UsageError(
        "no token is left to pick: the options forbid all of them; look at stop_tokens with min_new_tokens, and at what"
        " the artifact's generation_config.json suppresses"
    )


def _not_numbers() -> ArtifactError:
    return ArtifactError(
        "the model's logits are not finite numbers: its weights are damaged, or overflow in its precision"
    )

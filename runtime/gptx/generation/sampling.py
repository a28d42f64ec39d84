"""Sample a token id from the logits of one row: pure functions, chosen once by `make_sampler`.

First come the logits processors (logits_processors.py). Then greedy decoding takes the likeliest
token, or a token is drawn at random from those that temperature, top_k, top_p, min_p, typical_p,
epsilon_cutoff and eta_cutoff leave. The order and meaning of all these are those of transformers.
This file knows no text.

V: the number of logits. Weights are proportional to probabilities; they need not add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gptx.errors import ArtifactError, UsageError
from gptx.generation.logits_processors import processors
from gptx.generation.options import Options
from gptx.softmax import exp_weights

Sampler = Callable[[np.ndarray], int]  # float32 logits (V,), which it may overwrite -> token id

# Above this temperature all tokens are equally likely in float32.
HIGHEST_TEMPERATURE = 1e30
# Below this one, float32 cannot tell the probabilities from those of greedy decoding.
LOWEST_TEMPERATURE = 1e-6
# Values per chunk. Chunks that cannot hold the result are skipped as a whole, as a look at each of
# 50,000 logits would take a noticeable part of a decode step.
CHUNK = 64


def make_sampler(
    options: Options,
    *,
    prompt: Sequence[int],
    end_tokens: Iterable[int],
    seed: int | None,
    n_logits: int,
    max_length: int | None = None,
) -> Sampler:
    """The sampler of one row. It holds the row's random generator and its tokens so far.

    prompt, end_tokens, n_logits, max_length: see `processors`. seed: of the random draws; greedy
    decoding needs none.
    """
    draw = greedy if options.temperature == 0 else random_sampler(options, seed)
    chosen = processors(
        options, prompt=prompt, end_tokens=end_tokens, max_length=max_length, n_logits=n_logits
    )
    if not chosen:
        return draw
    tokens = list(prompt)

    def sample(logits: np.ndarray) -> int:
        logits = logits.astype(np.float32, copy=False)  # a penalty could overflow float16
        for process in chosen:
            process(logits, tokens)
        try:
            token = draw(logits)
        except ArtifactError:
            if np.isneginf(logits).all():  # the processors' bans; a damaged model gives NaN
                raise _nothing_left() from None
            raise
        tokens.append(token)
        return token

    return sample


def greedy(logits: np.ndarray) -> int:
    """The likeliest token. Raises ArtifactError for logits that are not finite."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):  # a NaN wins argmax
        raise _not_numbers()
    return token


def random_sampler(options: Options, seed: int | None) -> Sampler:
    """A sampler that draws at random, with its own generator (PCG64, seeded by `seed`)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rules = options.rules
    # Functions from weights to the indices that are kept
    filters: list[Callable[[np.ndarray], np.ndarray]] = []
    if rules.typical_p < 1:
        filters.append(lambda weights: typical(weights, rules.typical_p))
    if rules.epsilon_cutoff > 0:
        filters.append(lambda weights: likely(weights, rules.epsilon_cutoff))
    if rules.eta_cutoff > 0:
        filters.append(lambda weights: likely(weights, eta(weights, rules.eta_cutoff)))

    def draw(logits: np.ndarray) -> int:
        ids, weights = filter_logits(
            logits,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
        for kept in filters:
            ids, weights = _narrow(ids, weights, kept(weights))
        index = draw_index(weights, generator.random())
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


def draw_index(weights: np.ndarray, uniform: float) -> int:
    """The first index whose cumulative share of all weights exceeds `uniform` (0 to 1).

    Looks for the chunk first, then for the index in the chunk: this is faster than a cumulative sum
    over all.
    """
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
    """The first index whose cumulative weight exceeds the share `uniform`, never one of weight 0.

    ends: the cumulative weights.
    """
    total = ends[-1]
    index = int(np.searchsorted(ends, uniform * total, side="right"))
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

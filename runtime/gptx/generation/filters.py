"""Choose the tokens that may be drawn: temperature, top_k, top_p and the other filters.

Logits in, candidates out: the ids of the tokens that are left (None: all ids), and their weights,
which are proportional to probabilities and need not add up to 1.

Order and formulas are those of transformers 4.57 (_get_logits_processor); top_h is of version 5.
Two filters are llama.cpp's (llama-sampler.cpp). top_n_sigma stands in front of top_k, as there. xtc
is the last, as there, but llama.cpp applies the temperature behind it.

Most tokens are left out before anything is sorted: sorting 50,000 values would take longer than all
the rest.

All steps give the same bits on every CPU. exp and log are those of gptx.softmax. + - * / and sqrt
round as IEEE 754 says. numpy adds in an order that does not depend on SIMD: `sum` and `std` by
pairwise sums of 8 lanes (numpy/_core/src/umath/loops_utils.h.src), `cumsum` from first to last. The
result of a stable argsort is unique, and so are the values of a sort or a partition. Not used are
np.exp, np.log and np.power, whose bits depend on the CPU, and np.argpartition, whose order of equal
values does.

V: the number of logits. n: the number of candidates. keep: the least number of tokens that a filter
leaves, min_tokens_to_keep in transformers.
"""

from __future__ import annotations

import math

import numpy as np

from gptx.errors import ArtifactError
from gptx.generation.options import Options
from gptx.softmax import exp, exp_weights, log

Candidates = tuple[np.ndarray | None, np.ndarray]  # ids int64 (n,) or None, weights float32 (n,)

# Above this temperature all tokens are equally likely in float32.
HIGHEST_TEMPERATURE = 1e30
# Below this one, float32 cannot tell the probabilities from those of greedy decoding.
LOWEST_TEMPERATURE = 1e-6
CHUNK = 64


def candidates(logits: np.ndarray, options: Options, *, keep: int = 1) -> Candidates:
    """What all filters but xtc leave. The likeliest token has weight 1.

    Overwrites `logits`, because allocating an array of 50,000 takes time.

    Raises ArtifactError for logits that are not finite.
    """
    top = float(logits[logits.argmax()])  # in half the time of `max`; a NaN wins
    if not math.isfinite(top):
        raise not_numbers()
    temperature = min(max(options.temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE)
    min_p, top_p = options.min_p, options.top_p
    found: Candidates = None, logits
    if options.top_h > 0:
        found = _narrow(found, top_h(found[1], temperature, options.top_h))
    if options.top_n_sigma > 0:
        found = _narrow(found, top_n_sigma(found[1], options.top_n_sigma))
    if options.top_k > 0:
        found = _narrow(found, top_k(found[1], max(options.top_k, keep)))
    if min_p > 0 and top_p == 1:
        # The same as min_p below, but before exp is computed of all logits
        least = top + temperature * float(log(min_p))
        found = _narrow(found, at_least(found[1], least, keep))
    weights, total = exp_weights(found[1], top, temperature, out=found[1])
    if top_p < 1:
        found = _narrow(found, nucleus(weights, total, top_p, keep))
        if min_p > 0:
            found = _narrow(found, at_least(found[1], min_p, keep))  # the largest weight is 1
    if options.typical_p < 1:
        found = _narrow(found, typical(found[1], options.typical_p, keep))
    if options.epsilon_cutoff > 0:
        found = _narrow(found, likely(found[1], options.epsilon_cutoff, keep))
    if options.eta_cutoff > 0:
        found = _narrow(found, likely(found[1], eta(found[1], options.eta_cutoff), keep))
    return found


def _narrow(found: Candidates, kept: np.ndarray) -> Candidates:
    """Keep the candidates with the indices `kept`."""
    ids, weights = found
    return kept if ids is None else ids[kept], weights[kept]


def top_h(logits: np.ndarray, temperature: float, share: float) -> np.ndarray:
    """Indices of the largest logits whose terms of the entropy, -p log p, add up to `share` of it.

    p are the probabilities of the 100 likeliest tokens, as in transformers 5 (TopHLogitsWarper).
    Other tokens are left out. (Potraghloo et al. 2025, https://arxiv.org/abs/2509.02510.)
    """
    indices = top_k(logits, 100)
    indices = indices[np.argsort(-logits[indices], kind="stable")][:100]
    weights = exp((logits[indices].astype(np.float64) - logits[indices[0]]) / temperature)
    shares, surprises = _shares(weights)
    positive = shares > 0  # the first ones, as they are sorted
    terms = np.cumsum(shares[positive] * surprises[positive])
    return np.sort(indices[: max(int((terms <= share * terms[-1]).sum()), 1)])


def top_n_sigma(logits: np.ndarray, n: float) -> np.ndarray:
    """Indices of the logits at most n standard deviations below the highest one.

    (Tang et al. 2024, https://arxiv.org/abs/2411.07641.) The temperature changes nothing in it. As
    in llama.cpp, logits of -inf do not count for the standard deviation.
    """
    finite = logits[np.isfinite(logits)]
    least = float(finite.max()) - n * float(finite.std(dtype=np.float64))
    return np.flatnonzero(logits >= max(least, float(finite.min())))


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest values, and of those equal to the k-th largest."""
    chunks = len(values) // CHUNK
    if k >= len(values):
        return np.arange(len(values))
    if k > chunks:
        return np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
    # The k-th largest maximum of a chunk is a lower bound of the k-th largest value: k chunks have
    # a value at least as large. np.partition of all values would take 0.25 ms for 50,000.
    maxima = values[: chunks * CHUNK].reshape(CHUNK, chunks).max(axis=0)
    indices = np.flatnonzero(values >= np.partition(maxima, chunks - k)[chunks - k])
    left = values[indices]
    return indices[left >= np.partition(left, len(left) - k)[len(left) - k]]


def at_least(values: np.ndarray, least: float, keep: int) -> np.ndarray:
    """Indices of the values that are `least` or more, and of the `keep` largest ones."""
    return np.flatnonzero(values >= min(least, kth_largest(values, keep)))


def kth_largest(values: np.ndarray, k: int) -> float:
    """The k-th largest value; the smallest one if there are fewer."""
    return float(values.max() if k == 1 else values[top_k(values, k)].min())


def nucleus(weights: np.ndarray, total: float, top_p: float, keep: int = 1) -> np.ndarray:
    """Indices of the fewest largest weights whose share is at least top_p.

    total: the sum of the weights. Among equal weights, the first ones count as larger.

    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.)
    """
    enough = top_p * total
    # Weights below (1 - top_p) / V of the total add up to less than a share of 1 - top_p. So none
    # of them is in the nucleus. Mostly, those above the limit for a 32nd of V are enough: they are
    # tried first. All are taken where `keep` asks for more than the nucleus.
    for most in (max(len(weights) // 32, 1), len(weights), math.inf):
        indices = (weights >= (1 - top_p) * total / most).nonzero()[0]
        left = weights[indices]
        if len(left) >= keep and left.sum() >= enough:
            break
    largest_first = np.sort(left)[::-1]
    before = largest_first.cumsum(dtype=np.float64)
    count = min(max(int(before.searchsorted(enough)) + 1, keep), len(left))
    least = largest_first[count - 1]
    inside = indices[left >= least]
    if len(inside) > count:  # leave out the last of those with the least weight
        equal = np.flatnonzero(weights[inside] == least)
        inside = np.delete(inside, equal[count - len(inside) :])
    return inside


def typical(weights: np.ndarray, mass: float, keep: int = 1) -> np.ndarray:
    """Indices for locally typical sampling (Meister et al. 2022, https://arxiv.org/abs/2202.00666).

    The tokens whose surprise, -log p, is nearest to the entropy, as many as have the probability
    `mass` together.
    """
    shares, surprises = _shares(weights)
    distances = np.abs(surprises - _entropy(shares, surprises))
    order = np.argsort(distances, kind="stable")
    enough = max(int((np.cumsum(shares[order]) < mass).sum()), keep - 1)
    return np.flatnonzero(distances <= distances[order[min(enough, len(order) - 1)]])


def likely(weights: np.ndarray, least: float, keep: int = 1) -> np.ndarray:
    """Indices of the tokens with a probability of at least `least`, and of the `keep` likeliest.

    (Epsilon sampling, Hewitt et al. 2022, https://arxiv.org/abs/2210.15191.)
    """
    return at_least(weights, least * float(weights.sum(dtype=np.float64)), keep)


def eta(weights: np.ndarray, cutoff: float) -> float:
    """The least probability of eta sampling: the higher the entropy, the lower it is.

    (Hewitt et al. 2022, https://arxiv.org/abs/2210.15191.)
    """
    return min(cutoff, math.sqrt(cutoff) * float(exp(-_entropy(*_shares(weights)))))


def xtc(found: Candidates, threshold: float, *, keep: int = 1) -> Candidates:
    """Leave out all tokens with a probability of at least `threshold` but the least likely of them.

    (Exclude top choices, https://github.com/oobabooga/text-generation-webui/pull/6335.)
    """
    weights = found[1]
    least = threshold * float(weights.sum(dtype=np.float64))
    top = np.flatnonzero((weights >= least) & (weights > 0))  # a forbidden token has weight 0
    if len(top) < 2 or len(weights) - len(top) + 1 < keep:
        return found
    stays = top[weights[top].argmin()]
    return _narrow(found, np.delete(np.arange(len(weights)), top[top != stays]))


def _shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token's probability and its surprise -log p, in float64."""
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    return shares, -log(shares)


def _entropy(shares: np.ndarray, surprises: np.ndarray) -> float:
    positive = shares > 0
    return float((shares[positive] * surprises[positive]).sum())


def not_numbers() -> ArtifactError:
    """The error for logits that are not finite."""
    return ArtifactError(
        "the model's logits are not finite numbers: its weights are damaged, or overflow in its"
        " precision"
    )

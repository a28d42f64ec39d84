"""How far the logits of a model are from those of a reference: the figures of a certificate.

Numpy only. Export and quantize compare all logits; gptx verify compares the highest ones, which the
artifact carries. The KL divergence is that of the reference p from the model q, in nats:
sum over tokens of p log(p / q).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from gptx.softmax import exp, log_softmax

CHUNK = 64  # positions that are converted to float64 at once


@dataclass(frozen=True)
class Figures:
    """Figures over a text: the model is fed the text's own tokens (teacher-forced)."""

    positions: int
    max_abs: float  # largest absolute difference of a logit
    mean_abs: float  # mean absolute difference of a logit
    largest_logit: float  # largest magnitude in the reference; scales the relative limit
    kl_mean: float  # nats
    kl_p999: float  # 99.9th percentile over positions, nats
    same_top1: float  # share of positions at which both models prefer the same token
    # Over the positions at which the model prefers another token: the largest difference, in the
    # reference, between the logits of the two tokens. 0 if there is no such position.
    tie_gap: float
    perplexity_reference: float  # this and the next two: NaN for a classification head
    perplexity: float
    perplexity_error: float  # standard error of `perplexity`

    def to_dict(self) -> dict[str, float | int | None]:
        """The figures by name; None for the perplexities of a classification head."""
        return {
            name: None if math.isnan(value) and name in _PERPLEXITIES else value
            for name, value in asdict(self).items()
        }


_PERPLEXITIES = ("perplexity_reference", "perplexity", "perplexity_error")


@dataclass
class Tally:
    """Accumulates comparisons of logits; `figures()` sums them up."""

    max_abs: float = 0.0
    sum_abs: float = 0.0
    n_logits: int = 0
    largest_logit: float = 0.0
    tie_gap: float = 0.0
    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)
    nll_reference: list[np.ndarray] = field(default_factory=list)
    nll: list[np.ndarray] = field(default_factory=list)

    def add(self, reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> None:
        """Compare n positions.

        reference, logits: (n, vocab_size) float32. targets: (n,) ids of the tokens that followed,
        -1 where none did.
        """
        for at in range(0, len(reference), CHUNK):
            piece = slice(at, at + CHUNK)
            self._add(
                reference[piece].astype(np.float64),
                logits[piece].astype(np.float64),
                targets[piece],
            )

    def _add(self, reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> None:
        log_p, log_q = log_softmax(reference), log_softmax(logits)
        self.add_difference(reference, logits)
        self.kl.append((exp(log_p) * (log_p - log_q)).sum(-1))
        chosen, top = logits.argmax(-1), reference.argmax(-1)
        rows = np.arange(len(reference))
        self.add_choice(chosen == top, reference[rows, top] - reference[rows, chosen])
        followed = targets >= 0
        self.nll_reference.append(-log_p[rows, targets][followed])
        self.nll.append(-log_q[rows, targets][followed])

    def add_difference(self, reference: np.ndarray, logits: np.ndarray) -> None:
        """Count the absolute differences of logits, two arrays of one shape."""
        gap = np.abs(reference - logits)
        # np.maximum keeps a NaN, which Python's max() may lose.
        self.max_abs = float(np.maximum(self.max_abs, gap.max(initial=0.0)))
        self.sum_abs += float(gap.sum())
        self.n_logits += gap.size
        self.largest_logit = max(self.largest_logit, float(np.abs(reference).max(initial=0.0)))

    def add_choice(self, same: np.ndarray, lead: np.ndarray) -> None:
        """Count the most likely tokens of n positions.

        same: (n,) bool, both models prefer the same token. lead: (n,) the reference's logit of its
        own token minus that of the model's token.
        """
        self.same.append(same)
        self.tie_gap = max(self.tie_gap, float(lead[~same].max(initial=0.0)))

    def figures(self) -> Figures:
        """The figures of all positions that were added, at least one."""
        kl, nll = np.concatenate(self.kl), np.concatenate(self.nll)
        same = np.concatenate(self.same)
        perplexity = perplexity_of(nll)
        error = (
            perplexity * float(nll.std(ddof=1)) / math.sqrt(len(nll)) if len(nll) > 1 else math.nan
        )
        reference = np.concatenate(self.nll_reference)
        return Figures(
            positions=len(kl),
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / max(self.n_logits, 1),
            largest_logit=self.largest_logit,
            kl_mean=max(float(kl.mean()), 0.0),  # rounding may give -1e-17
            kl_p999=max(float(np.quantile(kl, 0.999)), 0.0),
            same_top1=float(same.mean()),
            tie_gap=self.tie_gap,
            perplexity_reference=perplexity_of(reference),
            perplexity=perplexity,
            perplexity_error=error,
        )


def perplexity_of(nll: np.ndarray) -> float:
    """exp of the mean negative log-likelihood (nats); NaN for an empty array."""
    return float(exp(min(nll.mean(), 700.0))) if len(nll) else math.nan  # exp(710) overflows


def mean_kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence in nats of (n, vocab_size) logits from the reference's; 0 if n is 0."""
    if not len(reference):
        return 0.0
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return max(float((exp(log_p) * (log_p - log_q)).sum(-1).mean()), 0.0)

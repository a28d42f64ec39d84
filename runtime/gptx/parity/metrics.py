"""How far one model's logits are from another's, position by position: the figures of the parity certificate.

Numpy only: export and quantize use it with all logits, `gptx verify` with the highest ones that the artifact carries.
KL is of the reference against the subject, in nats: sum p log(p / q).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from gptx.softmax import log_softmax

CHUNK = 64  # positions at a time in float64


@dataclass(frozen=True)
class Figures:
    """What was measured over a text, teacher-forced."""

    positions: int
    max_abs: float  # largest and mean |difference| of a logit
    mean_abs: float
    largest_logit: float  # of the reference, in magnitude: what max_abs is judged beside
    kl_mean: float
    kl_p999: float  # 99.9th percentile over positions
    same_top1: float  # share of positions
    tie_gap: float  # where top-1 changed: the largest lead that the reference's choice had there; 0 if nowhere
    perplexity_reference: float
    perplexity: float
    perplexity_error: float  # standard error of the latter

    def to_dict(self) -> dict[str, float | int | None]:
        """None for what there is not: a classification head has no perplexity."""
        return {
            name: None if math.isnan(value) and name in _OF_LANGUAGE else value
            for name, value in asdict(self).items()
        }


_OF_LANGUAGE = ("perplexity_reference", "perplexity", "perplexity_error")


@dataclass
class Tally:
    """Adds up comparisons; `figures()` at the end."""

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
        """Both (n, vocab_size) float32; targets (n,) the token that followed, -1 where none did."""
        for at in range(0, len(reference), CHUNK):
            piece = slice(at, at + CHUNK)
            self._add(
                reference[piece].astype(np.float64),
                logits[piece].astype(np.float64),
                targets[piece],
            )

    def _add(self, reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> None:
        log_p, log_q = log_softmax(reference), log_softmax(logits)
        self.difference(reference, logits)
        self.kl.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
        chosen, top = logits.argmax(-1), reference.argmax(-1)
        rows = np.arange(len(reference))
        self.choice(chosen == top, reference[rows, top] - reference[rows, chosen])
        followed = targets >= 0
        self.nll_reference.append(-log_p[rows, targets][followed])
        self.nll.append(-log_q[rows, targets][followed])

    def difference(self, reference: np.ndarray, logits: np.ndarray) -> None:
        gap = np.abs(reference - logits)
        # a NaN must not be lost in a comparison
        self.max_abs = float(np.maximum(self.max_abs, gap.max(initial=0.0)))
        self.sum_abs += float(gap.sum())
        self.n_logits += gap.size
        self.largest_logit = max(self.largest_logit, float(np.abs(reference).max(initial=0.0)))

    def choice(self, same: np.ndarray, lead: np.ndarray) -> None:
        """Whether top-1 is the same (n,), and by how much the reference's choice led what was chosen instead."""
        self.same.append(same)
        self.tie_gap = max(self.tie_gap, float(lead[~same].max(initial=0.0)))

    def figures(self) -> Figures:
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
            kl_mean=max(float(kl.mean()), 0.0),  # rounding can leave -1e-17
            kl_p999=max(float(np.quantile(kl, 0.999)), 0.0),
            same_top1=float(same.mean()),
            tie_gap=self.tie_gap,
            perplexity_reference=perplexity_of(reference),
            perplexity=perplexity,
            perplexity_error=error,
        )


def perplexity_of(nll: np.ndarray) -> float:
    """NaN of no token."""
    return math.exp(min(nll.mean(), 700.0)) if len(nll) else math.nan  # more is no float


def mean_kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """Of (n, vocab_size) each; 0 of nothing."""
    if not len(reference):
        return 0.0
    log_p, log_q = log_softmax(reference.astype(np.float64)), log_softmax(logits.astype(np.float64))
    return max(float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()), 0.0)

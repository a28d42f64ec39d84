"""Scores of predictions against what was expected. Knows neither models nor files.

ROUGE is computed here because Google's rouge-score, which the tests compare with, brings nltk and
absl along. Like its default, this ROUGE does not stem words: figures from papers that stem are
about a point higher.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The share of predictions that are as expected."""
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The mean F1 of all labels that were expected or predicted.

    As scikit-learn's f1_score(average="macro").
    """
    hits = Counter(p for p, e in zip(predicted, expected, strict=True) if p == e)
    counts = Counter(predicted) + Counter(expected)
    return sum(2 * hits[label] / count for label, count in counts.items()) / len(counts)


def rouge(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L as F1, each the mean over all candidates.

    A candidate may have several references: the best of its scores counts, for each of the three.
    """
    scores = [
        [max(values) for values in zip(*(_rouge(_words(c), _words(one)) for one in several))]
        for c, several in zip(candidates, references, strict=True)
    ]
    names = ("rouge1", "rouge2", "rougeL")
    return {name: sum(values) / len(scores) for name, values in zip(names, zip(*scores))}


def perplexity(loss: float) -> float:
    """exp(loss), for a loss in nats per token; finite even for a model that has diverged."""
    return math.exp(min(loss, 700.0))  # exp(710) overflows a float


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats per token as bits per byte of text, which is comparable between tokenizers."""
    return loss / math.log(2) / bytes_per_token


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _rouge(candidate: list[str], reference: list[str]) -> tuple[float, float, float]:
    """F1 of the shared words, pairs of words, and the longest common subsequence."""

    def f1(common: int, length: int) -> float:
        total = max(len(candidate) - length + 1, 0) + max(len(reference) - length + 1, 0)
        return 2 * common / total if common else 0.0

    shared = [(_ngrams(candidate, n) & _ngrams(reference, n)).total() for n in (1, 2)]
    return f1(shared[0], 1), f1(shared[1], 2), f1(_longest_common(candidate, reference), 1)


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[at:] for at in range(n))))


def _longest_common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence.

    The bits of one integer hold a row of the dynamic-programming table, so a row is one step
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    places: dict[str, int] = {}
    for at, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << at
    row = full = (1 << len(a)) - 1
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(a) - (row & full).bit_count()

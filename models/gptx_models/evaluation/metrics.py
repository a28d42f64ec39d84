"""What a fine-tuned model said and what was expected in; scores out. Knows neither models nor files.

ROUGE is counted here: Google's rouge-score, which the tests compare with, gives the same figures and brings nltk and
absl along. Like its default it does not stem, so figures from papers that stem lie about a point higher.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The mean F1 of all labels that were expected or predicted, as scikit-learn's f1_score(average="macro")."""
    hits = Counter(p for p, e in zip(predicted, expected, strict=True) if p == e)
    counts = Counter(predicted) + Counter(expected)
    return sum(2 * hits[label] / count for label, count in counts.items()) / len(counts)


def rouge(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L as F1: of several references the best one for each, then the mean of all candidates."""
    rows = [
        [
            max(values)
            for values in zip(
                *(_rouge(_words(candidate), _words(reference)) for reference in all_of_it)
            )
        ]
        for candidate, all_of_it in zip(candidates, references, strict=True)
    ]
    return {
        name: sum(values) / len(rows)
        for name, values in zip(("rouge1", "rouge2", "rougeL"), zip(*rows))
    }


def perplexity(loss: float) -> float:
    """loss: nats a token."""
    return math.exp(min(loss, 700.0))  # more is no float


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss: nats a token. Comparable between tokenizers, as perplexity is not."""
    return loss / math.log(2) / bytes_per_token


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _rouge(candidate: list[str], reference: list[str]) -> tuple[float, float, float]:
    def f1(common: int, length: int) -> float:
        total = max(len(candidate) - length + 1, 0) + max(len(reference) - length + 1, 0)
        return 2 * common / total if common else 0.0

    shared = [(_ngrams(candidate, n) & _ngrams(reference, n)).total() for n in (1, 2)]
    return f1(shared[0], 1), f1(shared[1], 2), f1(_longest_common(candidate, reference), 1)


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[at:] for at in range(n))))


def _longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, a row of its table a step, as the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << at
    row = full = (1 << len(a)) - 1
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(a) - (row & full).bit_count()

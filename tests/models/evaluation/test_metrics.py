"""Metrics: accuracy and F1 as scikit-learn defines them, ROUGE as Google's rouge-score computes
it.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptx_models.evaluation.metrics import accuracy, bits_per_byte, macro_f1, perplexity, rouge


def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "b", "b"]) == 0.5


def test_macro_f1_of_scikit_learn_s_documentation():
    """f1_score([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1], average="macro") is 0.267 there."""
    assert round(macro_f1(list("021001"), list("012012")), 3) == 0.267


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=30)
)
def test_macro_f1_is_the_mean_over_labels_seen_with_zero_division_zero(
    pairs: list[tuple[str, str]],
):
    predicted, expected = ([pair[side] for pair in pairs] for side in (0, 1))
    scores = []
    for label in set(predicted) | set(expected):
        hits = sum(p == e == label for p, e in pairs)
        precision = hits / predicted.count(label) if label in predicted else 0.0
        recall = hits / expected.count(label) if label in expected else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert macro_f1(predicted, expected) == pytest.approx(sum(scores) / len(scores))


def test_rouge_worked_by_hand():
    """5 of 6 and 6 words in common, 3 of 5 and 5 pairs, and "the cat on the mat" in order."""
    found = rouge(["The cat sat on the mat."], [["the cat lay on the mat"]])
    assert found == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    assert rouge(["", "..."], [["a"], ["a b"]]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


WORDS = st.lists(
    st.sampled_from(["We", "show", "that", "deep", "nets-", "of", "naïve", "2", "\n", "!"]),
    max_size=14,
)
TEXTS = WORDS.map(" ".join)


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_rouge_is_that_of_rouge_score(rows: list[tuple[str, list[str]]]):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [scorer.score_multi(references, candidate) for candidate, references in rows]
    ours = rouge([candidate for candidate, _ in rows], [references for _, references in rows])
    assert ours == pytest.approx(
        {name: sum(s[name].fmeasure for s in theirs) / len(rows) for name in ours}
    )


def test_perplexity_and_bits():
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert math.isfinite(perplexity(1e6))
    assert bits_per_byte(math.log(8), 4) == pytest.approx(3 / 4)

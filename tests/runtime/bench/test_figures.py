"""The figures of a certificate: compared with PyTorch's losses, and judged by limits.

Also figures from the 64 logits that an artifact keeps, and of a model compared with itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import gptx
from gptx.artifact.manifest import Shape
from gptx.bench.logits import change
from gptx.generation.session import Session
from gptx.parity.compare import compare
from gptx.parity.limits import LIMITS, judge, limits_for
from gptx.parity.metrics import Figures, Tally, mean_kl
from gptx.parity.reference import TOP, Reference
from gptx.parity.summarize import summarize
from gptx.verify import self_consistency

VOCAB = 150
SHAPE = Shape(
    n_layer=1, n_head=1, n_kv_head=1, head_dim=1, n_ctx=64, vocab_size=VOCAB, n_parameters=1
)
PIECES = [40, 100, 7]  # Tally takes 64 positions at a time


def pair(
    seed: int = 0, n: int = sum(PIECES), off: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a reference and of another model, (n, vocab_size), and the tokens that followed."""
    random = np.random.default_rng(seed)
    reference = random.normal(size=(n, VOCAB)).astype(np.float32) * 3
    other = reference + random.normal(size=(n, VOCAB)).astype(np.float32) * np.float32(off)
    return reference, other, random.integers(0, VOCAB, n)


def figures_of(reference: np.ndarray, other: np.ndarray, targets: np.ndarray) -> Figures:
    tally, at = Tally(), 0
    for length in PIECES:
        piece = slice(at, at + length)
        tally.add(reference[piece], other[piece], targets[piece])
        at += length
    return tally.figures()


def test_figures_are_pytorchs() -> None:
    reference, other, targets = pair()
    targets[[3, 70, -1]] = -1  # the ends of windows
    found = figures_of(reference, other, targets)
    p, q = (torch.from_numpy(values).double() for values in (reference, other))
    kl = kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    losses, exact = (
        cross_entropy(x, torch.from_numpy(targets), ignore_index=-1, reduction="none")[
            torch.from_numpy(targets) >= 0
        ]
        for x in (q, p)
    )
    changed = p.argmax(-1) != q.argmax(-1)
    leads = p.max(-1).values - p.gather(-1, q.argmax(-1, keepdim=True))[:, 0]
    perplexity = losses.mean().exp().item()
    assert changed[:64].any() and leads.argmax() < 100  # the largest is not in the last piece
    expected = Figures(
        positions=147,
        max_abs=(p - q).abs().max().item(),
        mean_abs=(p - q).abs().mean().item(),
        largest_logit=p.abs().max().item(),
        kl_mean=kl.mean().item(),
        kl_p999=kl.quantile(0.999).item(),
        same_top1=1 - changed.double().mean().item(),
        tie_gap=leads.max().item(),
        perplexity_reference=exact.mean().exp().item(),
        perplexity=perplexity,
        # the standard error of exp(mean) is exp(mean) times that of the mean
        perplexity_error=perplexity * losses.std().item() / 144**0.5,
    )
    for name, value in dataclasses.asdict(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert mean_kl(reference, other) == pytest.approx(kl.mean().item())


@pytest.mark.parametrize("at", [0, 63, 64, 140, 146])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_no_number_is_outside_every_limit(at: int, value: float) -> None:
    reference, other, targets = pair(off=1e-6)
    other[at, 5] = value
    with np.errstate(invalid="ignore"):
        found = figures_of(reference, other, targets)
    for precision in LIMITS:
        rows = {row.name: row.ok for row in judge(found, {}, limits_for(precision))}
        assert not rows["max_abs" if precision == "fp32" else "kl_mean"]


def test_the_same_logits_are_inside_every_limit() -> None:
    reference, _, targets = pair()
    found = figures_of(reference, reference, targets)
    assert (found.max_abs, found.tie_gap, found.same_top1) == (0, 0, 1)
    for precision in LIMITS:
        assert all(
            row.ok for row in judge(found, {"cached": 0.0, "cached_kl": 0.0}, limits_for(precision))
        )


SOUND = Figures(100, 0.0, 0.0, 20.0, 0.0, 0.0, 1.0, 0.0, 10.0, 10.0, 1.0)


@pytest.mark.parametrize(
    ("name", "largest_logit", "allowed"),
    [
        ("max_abs", 1.0, 0.5),
        ("max_abs", 20.0, 2.0),  # a tenth of the largest logit, where that is more
        ("tie_gap", 1.0, 1.0),  # two logits, each off by what max_abs allows
        ("tie_gap", 20.0, 4.0),
        ("kl_mean", 20.0, 0.25),
        ("cached", 1.0, 0.75),
        ("cached", 20.0, 2.0),
        ("cached_kl", 20.0, 0.125),
    ],
)
def test_what_is_over_its_limit_is_named(name: str, largest_logit: float, allowed: float) -> None:
    limits = {
        "max_abs": 0.5,
        "relative": 0.1,
        "kl_mean": 0.25,
        "consistency": 0.75,
        "consistency_kl": 0.125,
    }
    for value in (0.0, allowed, allowed * 1.001, np.nan):
        consistency = {"cached": 0.0, "cached_kl": 0.0}
        figures = dataclasses.replace(SOUND, largest_logit=largest_logit)
        if name in consistency:
            consistency[name] = value
        else:
            figures = dataclasses.replace(figures, **{name: value})
        rows = {row.name: row for row in judge(figures, consistency, limits)}
        assert set(rows) == {"max_abs", "tie_gap", "kl_mean", "cached", "cached_kl"}
        assert [row for row, found in rows.items() if not found.ok] == (
            [] if value <= allowed else [name]
        )
        assert rows[name].limit == pytest.approx(allowed)


def test_a_limit_that_is_not_set_is_not_judged() -> None:
    assert judge(SOUND, {"cached": 9.0, "cached_kl": 9.0}, {}) == []
    assert [row.name for row in judge(SOUND, {"cached": 9.0}, {"kl_mean": 1})] == ["kl_mean"]


# What an artifact keeps of its reference


WINDOWS = [list(range(20, 60)), list(range(30)), list(range(5, 25))]


def windows_logits(logits: np.ndarray) -> Callable[[list[int]], np.ndarray]:
    """Random logits for each window of WINDOWS."""
    starts = {tuple(window): sum(map(len, WINDOWS[:n])) for n, window in enumerate(WINDOWS)}

    def of(window: list[int]) -> np.ndarray:
        start = next(
            start for whole, start in starts.items() if whole[: len(window)] == tuple(window)
        )
        return logits[start : start + len(window)]

    return of


def kept(logits: np.ndarray, budget: int = 10**6) -> Reference:
    of = windows_logits(logits)
    return summarize(WINDOWS, lambda n: of(WINDOWS[n]), ([20, 21], [3, 4, 5]), budget=budget)


def test_a_reference_keeps_the_highest_logits(tmp_path: Path) -> None:
    logits, _, _ = pair(n=90)
    kept(logits).save(tmp_path)
    found = Reference.load(tmp_path, SHAPE)
    assert list(found.token_windows()) == [(0, WINDOWS[0]), (40, WINDOWS[1]), (70, WINDOWS[2])]
    top = torch.from_numpy(logits).topk(TOP)
    order = np.argsort(-found.top_logits, axis=-1)
    np.testing.assert_array_equal(np.take_along_axis(found.top_ids, order, -1), top.indices)
    np.testing.assert_array_equal(np.take_along_axis(found.top_logits, order, -1), top.values)
    np.testing.assert_allclose(
        found.logsumexp, torch.from_numpy(logits).double().logsumexp(-1), rtol=1e-6
    )
    following = [logits[at, token] for at, token in zip(range(39), WINDOWS[0][1:])]
    np.testing.assert_array_equal(found.target_logits[:40], [*following, np.nan])
    np.testing.assert_array_equal(found.full_positions, [39, 69])
    np.testing.assert_array_equal(found.full_logits, logits[[39, 69]])
    assert (found.greedy_prompt.tolist(), found.greedy_tokens.tolist()) == ([20, 21], [3, 4, 5])


@pytest.mark.parametrize("budget", [1, 25_000, 40_000])
def test_a_reference_has_as_many_positions_as_fit(budget: int, tmp_path: Path) -> None:
    logits, _, _ = pair(n=90)
    found = kept(logits, budget)
    found.save(tmp_path)
    assert [token for _, window in found.token_windows() for token in window] == sum(WINDOWS, [])[
        : len(found.tokens)
    ]
    assert len(found.tokens) == 16 if budget == 1 else 16 < len(found.tokens) < 90
    size = (tmp_path / "gptx_reference.safetensors").stat().st_size
    assert budget == 1 or 0.8 * budget < size <= budget
    assert compare(found, windows_logits(logits)).max_abs == 0


def test_figures_by_a_reference_are_those_of_all_logits_as_far_as_it_knows_them() -> None:
    logits, other, _ = pair(n=90)
    found = compare(kept(logits), windows_logits(other))
    p, q = (torch.from_numpy(values).double() for values in (logits, other))
    exact = Tally()
    exact.add(logits, other, np.concatenate([[*window[1:], -1] for window in WINDOWS]))
    whole = exact.figures()
    for name in (
        "positions",
        "same_top1",
        "perplexity",
        "perplexity_reference",
        "perplexity_error",
    ):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-6), name

    ids = p.topk(TOP).indices
    top = (p - q).gather(-1, ids).abs()
    everywhere = (p - q)[[39, 69]].abs()
    assert found.max_abs == pytest.approx(max(top.max().item(), everywhere.max().item()))
    assert found.mean_abs == pytest.approx(
        ((top.sum() + everywhere.sum()) / (90 * TOP + 2 * VOCAB)).item(), rel=1e-6
    )

    def coarse(logits: torch.Tensor) -> torch.Tensor:
        """Logarithms of the 64 kept probabilities and of the sum of all others."""
        probabilities = logits.softmax(-1).gather(-1, ids)
        return torch.cat([probabilities, 1 - probabilities.sum(-1, keepdim=True)], -1).log()

    kl = kl_div(coarse(q), coarse(p), log_target=True, reduction="none").sum(-1)
    assert found.kl_mean == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.kl_p999 == pytest.approx(kl.quantile(0.999).item(), rel=1e-4)
    assert found.kl_mean <= whole.kl_mean


def test_probability_that_moves_to_other_tokens_is_seen() -> None:
    """The 64 kept logits are the same, but the other tokens take most of the probability."""
    logits, _, _ = pair(n=90)
    other = np.where(logits < np.sort(logits)[:, -TOP : -TOP + 1], logits + 8, logits)
    found = compare(kept(logits), windows_logits(other))
    assert found.kl_mean > 1 and found.same_top1 < 0.5


def test_the_lead_of_a_choice_outside_the_kept_ones_is_that_of_their_last() -> None:
    logits, _, _ = pair(n=90)
    other = logits.copy()
    other[50, logits[50].argmin()] = 99
    found = compare(kept(logits), windows_logits(other))
    ordered = np.sort(logits[50])
    assert found.tie_gap == pytest.approx(ordered[-1] - ordered[-TOP])
    assert found.same_top1 == pytest.approx(89 / 90)


def test_windows_of_one_token(tmp_path: Path) -> None:
    """The full position of each window is its first and its last."""
    logits, other, _ = pair(n=2)
    summarize([[1], [2]], lambda n: logits[n : n + 1], ([1], []), budget=10**6).save(tmp_path)
    found = Reference.load(tmp_path, SHAPE)
    assert found.full_positions.tolist() == [0, 1]
    figures = compare(found, lambda window: other[window[0] - 1 :][:1])
    assert figures.max_abs == pytest.approx(np.abs(logits - other).max(), rel=1e-6)


# A model against itself


WAYS: dict[str, Callable[[Session, Sequence[Sequence[int]]], bool]] = {
    "a token at a time": lambda session, rows: (
        len(rows) == 1 and len(rows[0]) == 1 and session.lengths != [0]
    ),
    "a later piece": lambda session, rows: (
        len(rows) == 1 and len(rows[0]) > 1 and session.lengths != [0]
    ),
    "prompts side by side": lambda session, rows: len(rows) > 1 and not any(session.lengths),
    "steps side by side": lambda session, rows: len(rows) > 1 and all(session.lengths),
}
SEEN = {
    "a token at a time": {"cached", "batch"},  # of the batch, its rows alone
    "a later piece": {"pieces"},
    "prompts side by side": {"batch"},
    "steps side by side": {"batch"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_of_running_that_gives_other_logits_is_seen(
    way: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Session.feed

    def off(session: Session, rows: Sequence[Sequence[int]], **options: Any) -> Any:
        wrong = WAYS[way](session, rows)
        logits = feed(session, rows, **options)
        for row in logits if wrong else ():
            row *= 0.5
        return logits

    monkeypatch.setattr(Session, "feed", off)
    with gptx.load(artifacts["shared"], threads=1) as model:
        found = self_consistency(model, list(range(1, 60)))
    assert {name for name, value in found.items() if value > 1e-3} == {
        name for seen in SEEN[way] for name in (seen, f"{seen}_kl")
    }


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_short_text_too(length: int, artifacts: dict[str, Path]) -> None:
    with gptx.load(artifacts["shared"], threads=1) as model:
        found = self_consistency(model, list(range(length)))
    assert set(found) == {
        f"{way}{kl}" for way in ("cached", "pieces", "batch") for kl in ("", "_kl")
    }
    assert max(found.values()) < 1e-4


def test_a_perplexity_beyond_all_floats() -> None:
    """Damaged weights give huge logits; exp() of their loss must not overflow."""
    reference, logits = np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32)
    logits[:, 0] = 1e30
    tally = Tally()
    tally.add(reference, logits, np.full(4, 3))
    assert tally.figures().perplexity == pytest.approx(np.exp(700.0))
    assert change(tally)["change"] == pytest.approx(np.exp(700.0))

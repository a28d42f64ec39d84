"""Properties of batches: no row is lost or doubled, padding has no target, steps are
independent.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptx_models.data.batches import TokenRow, all_rows, row_batches, steps_per_epoch
from gptx_models.training.loss import IGNORED

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=70)
SIZES = st.integers(1, 9)


def made(lengths: list[int]) -> list[TokenRow]:
    """Rows whose ids are their number plus one; the second half of each has targets."""
    return [
        TokenRow(
            np.full(length, n + 1, np.int32),
            np.array([IGNORED] * (length // 2) + [n + 1] * (length - length // 2)),
        )
        for n, length in enumerate(lengths)
    ]


def content(
    batches: list[tuple[torch.Tensor, torch.Tensor]],
) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The rows without their padding, whose ids are 0 and whose targets are IGNORED."""
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for inputs, targets in batches:
        assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == targets.shape
        assert (targets[inputs == 0] == IGNORED).all()
        for ids, answers in zip(inputs, targets):
            length = int((ids != 0).sum())
            assert (ids[:length] != 0).all()  # padded on the right
            if length:
                found[tuple(ids[:length].tolist()), tuple(answers[:length].tolist())] += 1
    return found


def expected(rows: list[TokenRow]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    return Counter((tuple(row.inputs.tolist()), tuple(row.targets.tolist())) for row in rows)


@given(LENGTHS, SIZES, st.integers(0, 3), st.integers(0, 5))
def test_every_row_exactly_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int):
    rows, steps = made(lengths), steps_per_epoch(len(lengths), size)
    batch = row_batches(rows, batch_size=size, seed=seed)
    batches = [batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
    assert content(batches) == expected(rows)
    assert all(len(inputs) == size and inputs.shape[1] <= max(lengths) for inputs, _ in batches)


@given(LENGTHS, SIZES, st.integers(0, 3), st.integers(0, 300))
def test_a_resumed_run_reads_the_same(lengths: list[int], size: int, seed: int, step: int):
    rows = made(lengths)
    running = row_batches(rows, batch_size=size, seed=seed)
    for before in range(max(step - 20, 0), step):
        running(before)
    resumed = row_batches(rows, batch_size=size, seed=seed)
    for theirs, ours in zip(running(step), resumed(step)):
        assert torch.equal(theirs, ours)


@given(LENGTHS, SIZES)
def test_validation_is_every_row_once(lengths: list[int], size: int):
    rows = made(lengths)
    batches = list(all_rows(rows, batch_size=size))
    assert content(batches) == expected(rows)
    widths = [inputs.shape[1] for inputs, _ in batches]
    assert widths == sorted(widths, reverse=True)  # a lack of memory shows at once


def test_epochs_and_seeds_differ_and_little_is_padding():
    lengths = np.random.default_rng(1).integers(1, 200, 2000).tolist()
    rows, steps = made(lengths), steps_per_epoch(2000, 16)

    def epoch(seed: int, at: int) -> list[list[int]]:
        batch = row_batches(rows, batch_size=16, seed=seed)
        return [batch(step)[0][:, 0].tolist() for step in range(at * steps, (at + 1) * steps)]

    assert epoch(1, 0) != epoch(1, 1) != epoch(2, 1)
    assert sorted(map(sorted, epoch(1, 0))) != sorted(
        map(sorted, epoch(1, 1))
    )  # other rows meet, too
    batch = row_batches(rows, batch_size=16, seed=1)
    padding = sum(int((batch(step)[0] == 0).sum()) for step in range(steps))
    assert padding < 0.04 * sum(lengths)  # without sorting it is 0.9
    by_place = [float(batch(step)[0].shape[1]) for step in range(steps)]
    assert abs(np.corrcoef(by_place, range(steps))[0, 1]) < 0.3  # not the short ones first

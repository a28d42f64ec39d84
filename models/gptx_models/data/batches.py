"""Rows of any length in, batches of token ids out, padded on the right. Knows no text and no task.

Padding on the right needs no attention mask, because a causal model never looks ahead. The targets
of the padding are IGNORED. Rows of similar length share a batch, so that there is little padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from gptx_models.training.loss import IGNORED

# The number of batches whose rows are sorted by length together. A larger pool needs less padding,
# but it shuffles the rows less.
POOL = 50


@dataclass(frozen=True, eq=False)
class TokenRow:
    inputs: np.ndarray  # (length,) int32 token ids
    targets: np.ndarray  # (length,) int32: the next token's id or a class, or IGNORED


def row_batches(
    rows: Sequence[TokenRow], *, batch_size: int, seed: int
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """A function that returns the batch of a step: (inputs, targets), each (batch_size, S) int64.

    Every row comes once in steps_per_epoch steps. A batch with too few rows is filled with rows
    that have no targets. The rows of a step depend only on the seed and the number of the step, so
    that a resumed run reads the same.
    """
    lengths = np.array([len(row.inputs) for row in rows])
    steps = steps_per_epoch(len(rows), batch_size)

    @lru_cache(maxsize=2)
    def plan(epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, each as the indices of its rows."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(rows))
        pool = batch_size * max(1, min(POOL, len(rows) // (4 * batch_size)))
        pools = (order[first : first + pool] for first in range(0, len(rows), pool))
        by_length = (some[np.argsort(lengths[some], kind="stable")] for some in pools)
        batches = [
            some[first : first + batch_size]
            for some in by_length
            for first in range(0, len(some), batch_size)
        ]
        return [batches[at] for at in random.permutation(steps)]

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = plan(step // steps)[step % steps]
        return padded([rows[at] for at in chosen], batch_size)

    return batch


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    return -(-n_rows // batch_size)


def all_rows(
    rows: Sequence[TokenRow], *, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches that hold every row once.

    The longest rows come first, so that a lack of memory shows in the first batch.
    """
    ordered = sorted(rows, key=lambda row: -len(row.inputs))
    for first in range(0, len(ordered), batch_size):
        yield padded(ordered[first : first + batch_size], batch_size)


def padded(rows: Sequence[TokenRow], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (batch_size, S) int64; S is the length of the longest row."""
    length = max(len(row.inputs) for row in rows)
    inputs = np.zeros((batch_size, length), np.int64)  # (B, S)
    targets = np.full((batch_size, length), IGNORED)
    for at, row in enumerate(rows):
        inputs[at, : len(row.inputs)], targets[at, : len(row.inputs)] = row.inputs, row.targets
    return torch.from_numpy(inputs), torch.from_numpy(targets)

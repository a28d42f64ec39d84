"""Rows of any length in; batches of token ids out, padded on the right. Knows nothing of text or tasks.

A causal model never looks ahead, so padding needs no mask: its targets are IGNORED and that is all. Rows of like length
share a batch, so that little of it is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from gptx_models.training.loss import IGNORED

POOL = (
    50  # batches whose rows are sorted by length together: more waste less, and mix the rows less
)


@dataclass(frozen=True, eq=False)
class TokenRow:
    inputs: np.ndarray  # (length,) int32 token ids
    targets: np.ndarray  # (length,) int32: what follows each, or a class, or IGNORED


def row_batches(
    rows: Sequence[TokenRow], *, batch_size: int, seed: int
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """step -> (inputs, targets), each (batch_size, S) int64; every row once in steps_per_epoch steps.

    A step's rows depend on the seed and its number alone, so a resumed run reads what it would have read. An epoch's
    last rows may be fewer: empty rows, from which nothing is trained, fill their batch.
    """
    lengths = np.array([len(row.inputs) for row in rows])
    steps = steps_per_epoch(len(rows), batch_size)

    @lru_cache(maxsize=2)
    def plan(epoch: int) -> list[np.ndarray]:
        """The rows of each batch."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(rows))
        pool = batch_size * max(1, min(POOL, len(rows) // (4 * batch_size)))
        pools = (order[first : first + pool] for first in range(0, len(rows), pool))
        alike = (some[np.argsort(lengths[some], kind="stable")] for some in pools)
        batches = [
            some[first : first + batch_size]
            for some in alike
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
    """Every row once, the longest first: what does not fit into memory shows at once."""
    ordered = sorted(rows, key=lambda row: -len(row.inputs))
    for first in range(0, len(ordered), batch_size):
        yield padded(ordered[first : first + batch_size], batch_size)


def padded(rows: Sequence[TokenRow], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (batch_size, S) int64, S being the length of the longest."""
    length = max(len(row.inputs) for row in rows)
    inputs = np.zeros((batch_size, length), np.int64)  # (B, S)
    targets = np.full((batch_size, length), IGNORED)
    for at, row in enumerate(rows):
        inputs[at, : len(row.inputs)], targets[at, : len(row.inputs)] = row.inputs, row.targets
    return torch.from_numpy(inputs), torch.from_numpy(targets)

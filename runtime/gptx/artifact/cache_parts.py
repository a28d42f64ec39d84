"""The arrays that the KV cache of one layer consists of, and their names in a graph.

In: the type of keys and values. Out: the cache's inputs and outputs, and the bytes of a position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CachePart:
    """One array of a layer's cache, (rows, n_kv_head, positions, *shape)."""

    name: str  # the end of its name in a graph
    dtype: np.dtype
    shape: tuple[int, ...]  # of one position of a head: (head_dim,), or () for a scale


def cache_parts(dtype: np.dtype, head_dim: int) -> list[CachePart]:
    """The arrays of a layer. Keys and values of 8 bits have a scale for each head and position."""
    numbers = [CachePart(name, dtype, (head_dim,)) for name in ("key", "value")]
    if dtype != np.int8:
        return numbers
    scales = [CachePart(f"{part.name}_scale", np.dtype(np.float32), ()) for part in numbers]
    return [*numbers, *scales]


def cache_names(start: str, n_layer: int, parts: Iterable[CachePart]) -> list[str]:
    """The cache's inputs (start: "past_key_values") or outputs ("present"), layer by layer."""
    parts = list(parts)
    return [f"{start}.{layer}.{part.name}" for layer in range(n_layer) for part in parts]


def position_bytes(parts: Iterable[CachePart]) -> int:
    """Bytes of one position of one head in one layer."""
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)

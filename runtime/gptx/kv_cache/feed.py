"""What one row of a KV cache feeds in a run of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Feed(NamedTuple):
    """The next token ids of a row. Logits are wanted after the last `wanted` of them."""

    row: int
    ids: Sequence[int]
    wanted: int

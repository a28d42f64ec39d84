"""The figures that Model.stats gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a model is doing, and what it has done since it was loaded.

    Now:

    - rows: texts that grow. queue: texts that wait for a row.
    - cache_bytes: memory of the rows' KV cache, and of the draft model's. prefix_bytes: memory of
      the prefix cache.

    Since it was loaded:

    - steps: runs of the graph.
    - prompt_tokens: tokens of prompts that were read. new_tokens: tokens that were generated.
    - prefix_hits, prefix_tokens: texts that began with a stored prefix, and its tokens, which were
      not read again.
    - drafted, accepted: tokens that speculation guessed, and those that were right.
    - draft_steps: runs of the draft model's graph.
    """

    rows: int
    queue: int
    cache_bytes: int
    prefix_bytes: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    prefix_hits: int
    prefix_tokens: int
    drafted: int
    accepted: int
    draft_steps: int

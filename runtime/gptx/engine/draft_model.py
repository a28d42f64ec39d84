"""A draft model: a smaller model that guesses the next tokens of texts. Tokens in, guesses out.

Each text has a row of the draft model's own KV cache. speculation.py decides how many tokens are
guessed; this file does not know what became of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.step_cost import StepCost
from gptx.errors import GptxError
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows
from gptx.ort.graph import OnnxGraph
from gptx.text.prefix import common_length

OBSERVED = 64  # tokens of the longest step that the cost is fitted to


class Wanted(NamedTuple):
    """A text whose next tokens are to be guessed.

    key: tells texts apart. tokens: the text so far. n: the most guesses. sample: draws a token from
    the draft model's logits (V,), which it may overwrite; it may raise GptxError.
    """

    key: Hashable
    tokens: Sequence[int]
    n: int
    sample: Callable[[np.ndarray], int]


@dataclass
class HeldRow:
    """A row of the cache. held: its tokens. read: how many of them are the text's own."""

    row: int
    held: list[int] = field(default_factory=list)
    read: int = 0


class DraftModel:
    """Guesses for at most `max_rows` texts.

    prefixes: what was read and is kept, of at most `prefix_memory` bytes. steps: runs of the graph.
    seconds: how long they took, with the drawing of guesses. cost: of steps that are not the first,
    which reads the weights from the disk.

    Threads: only one thread at a time may call it.
    """

    def __init__(self, graph: OnnxGraph, max_rows: int, prefix_memory: int) -> None:
        model = graph.manifest.model
        self._n_ctx, self._vocab_size = model.n_ctx, model.vocab_size
        self._rows, self.prefixes = Rows(graph, max_rows), PrefixCache(prefix_memory)
        self._texts: dict[Hashable, HeldRow] = {}
        self.steps, self.seconds, self.cost = 0, 0.0, StepCost()

    @property
    def chunk(self) -> int:
        """The most tokens of a run."""
        return self._rows.chunk

    @property
    def bytes(self) -> int:
        """The memory of the rows."""
        return self._rows.bytes

    def bytes_with(self, rows: int, longest: int) -> int:
        """The memory that so many rows need, the longest text of so many tokens."""
        return self._rows.bytes_with(rows, min(longest, self._n_ctx))

    def unread(self, key: Hashable, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens of a text that its row does not hold; wrong guesses leave the row."""
        text = self._texts.get(key) or self._begin(key, tokens)
        if tokens[: text.read] != text.held[: text.read]:
            text.read = 0  # the text has outgrown the context, and goes on with a part of it
        n = text.read + common_length(text.held[text.read :], tokens[text.read :])
        n = min(n, len(tokens) - 1)  # the last token is read in any case: its logits are wanted
        text.read = n
        del text.held[n:]
        self._rows.keep(text.row, n)
        return tokens[n:]

    def most(self, tokens: Sequence[int], unread: Sequence[int]) -> int:
        """How many tokens can be guessed behind a text whose last tokens are `unread`.

        0 if the context is full, or one of them is an id that only the other model has, whose
        vocabulary may have a longer padding.
        """
        if max(unread) >= self._vocab_size:
            return 0
        return max(self._n_ctx + 1 - len(tokens), 0)

    def drafts(self, wanted: Sequence[Wanted], room: int) -> list[list[int]]:
        """Guesses of the next tokens of each text; all texts share the runs.

        room: the most tokens of the first run, which reads what the rows do not hold. A text of
        which more is unread is read as far as there is room, and gets no guesses this time.

        Raises GptxError if the memory for the rows is missing, ArtifactError if the graph fails.
        """
        found: list[list[int]] = [[] for _ in wanted]
        feeds = self._unread_parts(wanted, room)
        while feeds:
            began = time.perf_counter()
            results = self._rows.run(list(feeds.values()))
            following = {}
            for (at, feed), logits in zip(feeds.items(), results):
                one, text = wanted[at], self._texts[wanted[at].key]
                text.held += feed.ids
                text.read = min(len(text.held), len(one.tokens))
                guess = _sample(one, logits) if feed.wanted else None
                if guess is not None:
                    found[at].append(guess)
                    if len(found[at]) < one.n:
                        following[at] = Feed(text.row, [guess], 1)
            self._count(sum(len(feed.ids) for feed in feeds.values()), time.perf_counter() - began)
            feeds = following
        return found

    def _unread_parts(self, wanted: Sequence[Wanted], room: int) -> dict[int, Feed]:
        """What the first run reads, by the index of the text. Short parts go first."""
        parts = [self.unread(one.key, one.tokens) for one in wanted]
        feeds = {}
        for at in sorted(range(len(parts)), key=lambda at: len(parts[at])):
            if ids := parts[at][:room]:
                row = self._texts[wanted[at].key].row
                feeds[at] = Feed(row, ids, int(len(ids) == len(parts[at])))
                room -= len(ids)
        return feeds

    def _begin(self, key: Hashable, tokens: Sequence[int]) -> HeldRow:
        """Give a text a row, with its beginning if that was read before."""
        text = self._texts[key] = HeldRow(self._rows.open())
        n, parts = self.prefixes.find(tokens[:-1])
        if n:
            self._rows.write(text.row, n, parts)
            text.held, text.read = list(tokens[:n]), n
        return text

    def _count(self, tokens: int, seconds: float) -> None:
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        if self.steps > 1 and tokens <= OBSERVED:
            self.cost.observe(tokens, seconds)

    def forget(self, key: Hashable) -> None:
        """Free the row of a text that has ended, and store what it holds of the text."""
        text = self._texts.pop(key, None)
        if text is not None:
            held = text.held[: text.read]
            self.prefixes.store(held, lambda start, end: self._rows.read(text.row, start, end))
            self._rows.close(text.row)

    def reset(self) -> None:
        """Free the rows of all texts, and store nothing; their texts may go on."""
        self._texts = {}
        self._rows.close_all()


def _sample(wanted: Wanted, logits: np.ndarray) -> int | None:
    """A guess from logits (1, V); None if none can be drawn, as from logits that are NaN."""
    try:
        return wanted.sample(logits[0])
    except GptxError:
        return None

"""The step-level API: a Session holds the cache and the tokens of one or more rows; token ids in, logits out.

Not safe to share between threads: each conversation has its own. Knows nothing of text, sampling or when to stop.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, Self, overload

import numpy as np

from gptx.cache import Cache, open_cache
from gptx.engine import Engine
from gptx.errors import PromptError, UsageError
from gptx.on_device import OnDevice


class Session:
    """Rows of tokens and their cache.

    `size`: hold at most so many tokens a row and make room for them at once; without it the cache grows with use, up to
    the model's context.
    """

    def __init__(self, engine: Engine, batch_size: int = 1, *, size: int | None = None) -> None:
        n_ctx = engine.manifest.model.n_ctx
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected at least 1")
        if size is not None and not 1 <= size <= n_ctx:
            raise UsageError(f"size is {size}, expected 1 to {n_ctx}, the model's context")
        self.limit: int = size or n_ctx
        self.vocab_size: int = engine.manifest.model.vocab_size
        self.n_logits: int = engine.manifest.model.n_logits  # vocab_size, or the classes of a head
        self._tokens: list[list[int]] = [[] for _ in range(batch_size)]
        self._lengths = [0] * batch_size
        self._cache: Cache | _Closed = open_cache(engine, batch_size, limit=self.limit, size=size)
        self._logits = self._cache.logits[:, 0]  # (B, V), a view of what steps write
        self._large_pages = engine.large_pages

    @property
    def batch_size(self) -> int:
        return len(self._tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return list(self._lengths)

    @property
    def tokens(self) -> list[list[int]]:
        """The tokens that each row holds (copies)."""
        return [list(row) for row in self._tokens]

    @property
    def capacity(self) -> int:
        """Tokens that each row of the cache has room for now."""
        return self._cache.capacity

    @overload
    def feed(self, rows: Sequence[Sequence[int]]) -> np.ndarray: ...
    @overload
    def feed(self, rows: Sequence[Sequence[int]], *, all_logits: Literal[True]) -> list[np.ndarray]: ...
    def feed(self, rows: Sequence[Sequence[int]], *, all_logits: bool = False) -> np.ndarray | list[np.ndarray]:
        """Append new tokens to each row; float32 logits (B, n_logits) after each row's last one.

        A row may get none ([]): it stays as it is, and its logits are NaN. With `all_logits`: a row's (n, n_logits),
        the logits after every new token. The arrays are the caller's to keep. Raises PromptError.
        """
        if all_logits:
            return self._feed_all(rows)
        logits = self.advance(rows).astype(np.float32, copy=True)
        for row, new in enumerate(rows):
            if not len(new):
                logits[row] = np.nan
        return logits

    def advance(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """As feed, without the copy: the array is the session's own, the next call overwrites it, and rows that got
        nothing hold anything. The caller may write into it."""
        self._large_pages.called()
        if len(rows) == 1 == len(self._tokens) and self._advance_one(rows[0]):
            return self._logits
        counts = self._check(rows)
        if 1 in counts:
            ones = [new[0] if count == 1 else None for new, count in zip(rows, counts)]
            self._cache.step(ones, self._lengths)
            for row, token in enumerate(ones):
                if token is not None:
                    self._tokens[row].append(int(token))
                    self._lengths[row] += 1
        if max(counts) > 1:  # after the step, which leaves nothing of use in the logits of idle rows
            self._fill({row: new for row, new in enumerate(rows) if len(new) > 1})
        return self._logits

    def _advance_one(self, new: Sequence[int]) -> bool:
        """The common step, one good token of the only row, with nothing that it does not need; else False."""
        if len(new) != 1:
            return False
        token, held = new[0], self._lengths[0]
        if type(token) is not int or not 0 <= token < self.vocab_size or held == self.limit:
            return False
        self._cache.step((token,), self._lengths)
        self._tokens[0].append(token)
        self._lengths[0] = held + 1
        return True

    def begin_at(self, position: int) -> None:
        """Give the next token of an empty session of one row this position. The places before it hold nothing and are
        not seen: only for windows that are fed whole, with all_logits, on the CPU."""
        assert len(self._tokens) == 1 and not self._lengths[0] and not isinstance(self._cache, OnDevice | _Closed)
        self._cache.skip(position)
        self._tokens, self._lengths = [[0] * position], [position]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Keep only the first so many tokens of each row; the rest is forgotten, at no cost. Raises UsageError."""
        if len(lengths) != self.batch_size:
            raise UsageError(f"rewind got {len(lengths)} lengths for {self.batch_size} rows")
        for row, (new, old) in enumerate(zip(lengths, self._lengths)):
            if not 0 <= new <= old:
                raise UsageError(f"row {row} holds {old} tokens and cannot be rewound to {new}")
        if list(lengths) == self._lengths:
            return
        self._cache.rewind(lengths)
        for tokens, length in zip(self._tokens, lengths):
            del tokens[length:]
        self._lengths = list(lengths)

    def close(self) -> None:
        """Give the cache's memory back; the session cannot be used afterwards."""
        self._cache, self._logits = _Closed(), np.empty((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _feed_all(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self._check(rows)
        outs = [np.empty((len(new), self.n_logits), np.float32) for new in rows]
        fed = {row: new for row, new in enumerate(rows) if len(new)}
        self._fill(fed, {row: outs[row] for row in fed})
        return outs

    def _fill(self, rows: dict[int, Sequence[int]], outs: dict[int, np.ndarray] | None = None) -> None:
        new = {row: np.asarray(ids, np.int64) for row, ids in rows.items()}
        self._cache.fill(new, self._lengths, outs)
        for row, ids in new.items():
            self._tokens[row] += ids.tolist()
            self._lengths[row] += len(ids)

    def _check(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """How many new tokens each row gets, all of them checked."""
        if len(rows) != len(self._tokens):
            raise UsageError(f"feed got {len(rows)} rows, and the session has {len(self._tokens)}")
        counts = [len(new) for new in rows]
        if not any(counts):
            raise PromptError("nothing to feed: every row is empty")
        for row, (new, held) in enumerate(zip(rows, self._lengths)):
            name = f"row {row}: " if len(rows) > 1 else ""
            if held + len(new) > self.limit:
                raise PromptError(
                    f"{name}{held} tokens held and {len(new)} new ones do not fit into a context of {self.limit}"
                )
            for token in new if len(new) == 1 else _extremes(new):
                if not 0 <= _integer(token) < self.vocab_size:
                    raise PromptError(
                        f"{name}token id {token} is outside the model's vocabulary: 0 to {self.vocab_size - 1}"
                    )
        return counts


class _Closed:
    """What stands in a closed session's place of a cache."""

    capacity = 0

    def __getattr__(self, name: str) -> Any:
        raise UsageError("this session is closed")


def _extremes(new: Sequence[int]) -> tuple[int, ...]:
    """The smallest and the largest id: if these are good, all are."""
    if not len(new):
        return ()
    ids = np.asarray(new)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise PromptError(f"token ids are integers in a list, not {new!r:.80}")
    return int(ids.min()), int(ids.max())


def _integer(token: object) -> int:
    try:
        return operator.index(token)  # type: ignore[arg-type]
    except TypeError:
        raise PromptError(f"a token id is an integer, not {token!r}") from None

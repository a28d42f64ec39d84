"""The step-level interface: a Session of one or more rows; token ids in, logits out.

Each method checks its arguments first. If it raises an error, the session is as it was before. A
session knows no text, does not sample, and does not know when a text ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, overload

import numpy as np

from gptx.arguments import count, integer, is_list, rows_of, token_ids
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.one_thread import OneThread
from gptx.kv_cache.cuda import CudaCache
from gptx.kv_cache.open import Cache, open_cache
from gptx.ort.graph import OnnxGraph

# More rows than any machine has memory for, yet few enough that a float counts them exactly: the
# memory check computes in floats.
MOST_ROWS = 10**12


class Session:
    """Rows of tokens (a batch of sequences) with their KV cache. Model.session opens one.

    `feed` appends tokens to the rows and returns logits. `rewind` drops tokens from their ends.
    `close`, or leaving a `with` block, frees the cache's memory.

    Attributes:

    - batch_size: the number of rows.
    - lengths: the number of tokens that each row holds.
    - tokens: the token ids of each row.
    - limit: the most tokens that a row may hold: `size` of Model.session, or the model's context.
    - capacity: the tokens that each row has memory for at the moment.
    - vocab_size: token ids are 0 to vocab_size - 1.
    - n_logits: the last axis of the logits: vocab_size, or the number of outputs of a
      classification head.

    Threads: any thread may call a session, but only one at a time. A call from a second thread
    meanwhile raises UsageError.
    """

    def __init__(self, graph: OnnxGraph, batch_size: int = 1, *, size: int | None = None) -> None:
        if not isinstance(graph, OnnxGraph):
            raise UsageError(f"graph is {shown(graph)}: Model.session opens a session")
        n_ctx = graph.manifest.model.n_ctx
        n_rows = count(
            "batch_size", batch_size, "at least 1, and no more than memory has room for", MOST_ROWS
        )
        if size is not None:
            size = count("size", size, f"1 to {n_ctx}, the model's context", n_ctx)
        self.limit: int = size or n_ctx
        self.vocab_size: int = graph.manifest.model.vocab_size
        self.n_logits: int = graph.manifest.model.n_logits
        self._cache: Cache | _Closed = open_cache(graph, n_rows, limit=self.limit, size=size)
        self._tokens: list[list[int]] = [[] for _ in range(n_rows)]
        # The number of valid tokens of each row. If a call failed half-way, _tokens and the cache
        # may hold more.
        self._lengths = [0] * n_rows
        # The mark of the call that runs, or that failed half-way; None after a whole call.
        self._unfinished: object | None = None
        # (B, n_logits): a view of the buffer that every run writes to
        self._logits = self._cache.logits[:, 0]
        self._huge_pages = graph.huge_pages
        self._call = OneThread(
            "another thread is using this session: give each thread a session of its own"
        )

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return len(self._tokens)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each row."""
        return list(self._lengths)

    @property
    def tokens(self) -> list[list[int]]:
        """The token ids of each row (copies)."""
        return [row[:length] for row, length in zip(self._tokens, self._lengths)]

    @property
    def capacity(self) -> int:
        """The number of tokens that each row of the KV cache has memory for at the moment."""
        return self._cache.capacity

    @overload
    def feed(self, rows: Sequence[Sequence[int]]) -> np.ndarray: ...
    @overload
    def feed(
        self, rows: Sequence[Sequence[int]], *, all_logits: Literal[True]
    ) -> list[np.ndarray]: ...
    def feed(
        self, rows: Sequence[Sequence[int]], *, all_logits: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """Append new tokens to each row, and return the logits after each row's last new token.

        rows: a list of token ids for each row. A row that gets [] stays as it is.

        Returns a float32 array (batch_size, n_logits). A row that got [] has NaN in it. With
        all_logits=True, returns the logits after every new token: a list with one float32 array (n,
        n_logits) for each row, where n is the number of its new tokens. The arrays belong to the
        caller.

        Raises PromptError if the tokens are not token ids, do not fit into the context, or all rows
        got []; UsageError for wrong types or a closed session; GptxError if there is too little
        memory. The session is then as it was before.
        """
        if not isinstance(all_logits, bool | np.bool_):
            raise UsageError(f"all_logits is {shown(all_logits)}, expected True or False")
        with self._call:
            if all_logits:
                return self._run_all(self._check(rows))
            logits = self._advance(rows).astype(np.float32, copy=True)
        for row, ids in enumerate(rows):
            if not len(ids):
                logits[row] = np.nan
        return logits

    def advance(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Like `feed`, but without copying the logits: the returned array belongs to the session.

        The caller may write into the array. The next call overwrites it. Its dtype is that of the
        graph (float32 or float16). The values of a row that got [] are meaningless (`feed` returns
        NaN there).
        """
        with self._call:
            return self._advance(rows)

    def _advance(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        self._huge_pages.count_run()
        # Taken before the run, as a signal handler may close the session during it.
        logits = self._logits
        if len(self._tokens) > 1 or not self._advance_one(rows):
            self._run(self._check(rows))
        return logits

    def _advance_one(self, rows: Sequence[Sequence[int]]) -> bool:
        """The fast path of the most common call: one valid token for the only row.

        Returns False, and does nothing, for any other call.
        """
        if (
            type(rows) is not list
            or len(rows) != 1
            or type(rows[0]) not in (tuple, list)
            or len(rows[0]) != 1
            or self._unfinished is not None
        ):
            return False
        token, held = rows[0][0], self._lengths[0]
        if type(token) is not int or not 0 <= token < self.vocab_size or held == self.limit:
            return False
        call = self._unfinished = object()
        self._cache.decode((token,), self._lengths)
        self._tokens[0].append(token)
        self._finish(call, [held + 1])
        return True

    def begin_at(self, position: int) -> None:
        """Give the next token of an empty session this position, as if tokens stood in front of it.

        Attention does not see those positions, which hold nothing. Only for a session of one row,
        on the CPU, whose tokens are then fed in one call with all_logits. Raises UsageError for
        other sessions, and for positions outside the context.
        """
        if self._lengths != [0] or isinstance(self._cache, CudaCache | _Closed):
            raise UsageError("begin_at is for an empty, open session of one row, on the CPU")
        number = integer(position)
        if number is None or not 0 <= number < self.limit:
            raise UsageError(f"position is {shown(position)}, expected 0 to {self.limit - 1}")
        self._cache.skip(number)
        self._tokens, self._lengths = [[0] * number], [number]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Keep only the first lengths[i] tokens of each row i.

        The cache's memory is kept, and nothing is computed.

        Raises UsageError if a length is not an integer from 0 to the row's length, or the session
        is closed.
        """
        with self._call:
            if isinstance(self._cache, _Closed):
                raise _closed()
            kept = []
            for row, (given, held) in enumerate(
                zip(rows_of("rewind", lengths, self.batch_size), self._lengths)
            ):
                length = integer(given)
                if length is None or not 0 <= length <= held:
                    raise UsageError(
                        f"row {row} holds {held} tokens and cannot be rewound to {shown(given)}"
                    )
                kept.append(length)
            call = self._begin()
            if kept != self._lengths:
                self._lengths = kept
                self._drop_the_rest()
            self._finish(call, kept)

    def close(self) -> None:
        """Free the memory of the KV cache. The session cannot be used afterwards."""
        with self._call:
            self._cache, self._logits = _Closed(), np.empty((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, new: list[list[int]]) -> None:
        """Run checked tokens. Rows that got a single token run together, in one decode step."""
        call, lengths = self._begin(), self._lengths
        ones = [ids[0] if len(ids) == 1 else None for ids in new]
        if any(token is not None for token in ones):
            self._cache.decode(ones, lengths)
            lengths = [held + (token is not None) for held, token in zip(lengths, ones)]
        # Prefill comes last: a decode step overwrites the logits of idle rows.
        several = {row: np.array(ids, np.int64) for row, ids in enumerate(new) if len(ids) > 1}
        if several:
            self._cache.prefill(several, lengths)
        self._keep(call, new)

    def _run_all(self, new: list[list[int]]) -> list[np.ndarray]:
        outs = [np.empty((len(ids), self.n_logits), np.float32) for ids in new]
        fed = {row: np.array(ids, np.int64) for row, ids in enumerate(new) if ids}
        call = self._begin()
        self._cache.prefill(fed, self._lengths, {row: outs[row] for row in fed})
        self._keep(call, new)
        return outs

    def _begin(self) -> object:
        """Mark the session as unfinished, until `_finish`. Returns the mark of this call.

        If an earlier call failed or was interrupted (by Ctrl-C, for instance), first drop the
        tokens that it left in the cache.
        """
        if self._unfinished is not None:
            self._drop_the_rest()
        self._unfinished = object()
        return self._unfinished

    def _drop_the_rest(self) -> None:
        """Drop the tokens beyond the rows' lengths from the cache and the token lists."""
        self._cache.rewind(self._lengths)
        for tokens, length in zip(self._tokens, self._lengths):
            del tokens[length:]

    def _keep(self, call: object, new: list[list[int]]) -> None:
        """Append the new tokens to the rows, now that the cache holds them."""
        for tokens, ids in zip(self._tokens, new):
            tokens += ids
        self._finish(call, [held + len(ids) for held, ids in zip(self._lengths, new)])

    def _finish(self, call: object, lengths: list[int]) -> None:
        """Make the result of a call valid, by one assignment, which no signal can interrupt."""
        if self._unfinished is not call:
            self._cache = _Closed()
            raise UsageError(
                "this session was used while one of its calls was running, for instance by a signal"
                " handler, and is closed: open another one"
            )
        self._lengths, self._unfinished = lengths, None

    def _check(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The new tokens of each row, checked. Raises PromptError or UsageError."""
        if isinstance(self._cache, _Closed):
            raise _closed()
        new = []
        for row, given in enumerate(rows_of("feed", rows, len(self._tokens))):
            name, held = f"row {row}", self._lengths[row]
            if is_list(given) and held + len(given) > self.limit:
                raise PromptError(
                    f"{name}: {held} tokens held and {len(given)} new ones do not fit into a"
                    f" context of {self.limit}"
                )
            new.append(token_ids(name, given, self.vocab_size))
        if not any(new):
            raise PromptError("nothing to feed: every row is empty")
        return new


class _Closed:
    """Takes the place of the cache in a closed session: every use raises UsageError."""

    capacity = 0

    def __getattr__(self, name: str) -> Any:
        raise _closed()


def _closed() -> UsageError:
    return UsageError("this session is closed")

"""A step of the engine: tokens of the requests that have rows in, what they want out.

plan (scheduler.py) -> drafts (speculation.py) -> Rows.run -> Work.take
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gptx.engine.draft_model import DraftModel
from gptx.engine.generate import Generate
from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.request import Request, Row
from gptx.engine.scheduler import RowState, plan
from gptx.engine.shared_beginnings import held_elsewhere, is_read_by
from gptx.engine.speculation import Speculation
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows

# Tokens of a row in one step whose logits are all wanted: 64 rows of 50,000 logits take 13 MB.
LOGITS_AT_ONCE = 64


class Going(NamedTuple):
    """What one row feeds in a step."""

    request: Request
    row: Row
    feed: Feed


@dataclass
class Steps:
    """The requests that have rows, and the rows.

    running: these requests, in the order in which they came. prefixes: what was read and is kept.
    steps: runs of the graph. prompt_tokens: tokens of prompts that were read. new_tokens: tokens
    that were generated. whole: False if an error, such as Ctrl-C, left the rows half-changed; then
    `reset` must come next.

    Threads: only one thread at a time may call it.
    """

    rows: Rows
    prefixes: PrefixCache
    speculation: Speculation | None  # None: no drafts
    running: list[Request] = field(default_factory=list)
    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    whole: bool = True
    _decoded_last: bool = False

    @property
    def bytes(self) -> int:
        """The memory of the rows, and of the draft model's."""
        return self.rows.bytes + (self._draft.bytes if self._draft else 0)

    def bytes_with(self, rows: int, longest: int) -> int:
        """The memory that so many rows need, with the draft model's; see Rows.bytes_with."""
        draft = self._draft.bytes_with(rows, longest) if self._draft else 0
        return self.rows.bytes_with(rows, longest) + draft

    def shrink(self, budget: int) -> None:
        """Drop stored prefixes until they take at most `budget` bytes.

        The model and its draft model share it by the bytes of a token, so that both can store the
        same texts.
        """
        budget = min(budget, self.prefixes.budget)
        if self._draft is not None:
            part = budget * self._draft.bytes_with(1, 1) // self.bytes_with(1, 1)
            self._draft.prefixes.shrink(part)
            budget -= part
        self.prefixes.shrink(budget)

    @property
    def prefix_caches(self) -> list[PrefixCache]:
        """The prefix caches of the model, and of the draft model."""
        return [self.prefixes, *([self._draft.prefixes] if self._draft else [])]

    def clear_prefixes(self) -> None:
        """Drop all stored prefixes."""
        for cache in self.prefix_caches:
            cache.clear()

    @property
    def _draft(self) -> DraftModel | None:
        return self.speculation.draft if self.speculation is not None else None

    def begin(self, request: Request) -> None:
        """Give a request its rows, with the beginnings of their tokens that were read before."""
        for row in request.work.rows:
            row.number = self.rows.open()
            n, parts = self.prefixes.find(row.tokens[: self._copied(row)])
            if n:
                self.rows.write(row.number, n, parts)
                row.read = n
        request.running = True
        self.running.append(request)

    def end(self, request: Request) -> None:
        """Take the rows of a request away, and store what they hold. It stays in `running`."""
        for row in request.work.rows:
            if row.number is not None:
                if request.error is None:
                    self._store(row)
                self.rows.close(row.number)
                row.number = None
        if request.running and self.speculation is not None and isinstance(request.work, Generate):
            self.speculation.forget(request.work)

    def reset(self, requests: Iterable[Request]) -> None:
        """Take all rows away, and store nothing. requests: all that may have rows."""
        for request in requests:
            for row in request.work.rows:
                row.number, row.read = None, 0
        self.rows.close_all()
        if self.speculation is not None:
            self.speculation.reset()
        for cache in self.prefix_caches:
            cache.count_bytes()
        self.whole = True

    def _store(self, row: Row) -> None:
        n, number = min(row.read, len(row.tokens)), row.number
        assert number is not None
        if not self.rows.packed:
            # ONNX Runtime's operators read tokens of a prompt and those that were generated in two
            # kernels, which differ in the last bit.
            n = min(n, row.wanted_from + 1) if row.wanted_from else 0
        if n:
            self.prefixes.store(
                row.tokens[:n], lambda start, end: self.rows.read(number, start, end)
            )

    def _copied(self, row: Row) -> int:
        """The most tokens of a row that are copied from elsewhere.

        The last token is read in any case, as its logits are wanted. ONNX Runtime's operators read
        a single token in another kernel than those of a prompt, so there two are left.
        """
        return max(row.wanted_from - (not self.rows.packed), 0)

    def plan(self) -> list[Going]:
        """What each row feeds in the next step."""
        rows = [
            (request, row)
            for request in self.running
            for row in request.work.rows
            if row.tokens and row.logits is None
        ]
        if all(row.decoding for _, row in rows):  # the usual case
            going = [Going(request, row, _last_token(row)) for request, row in rows]
            self._decoded_last = True
        else:
            going = self._plan_mixed(rows)
        return going

    def _plan_mixed(self, rows: list[tuple[Request, Row]]) -> list[Going]:
        every = [row for _, row in rows]
        for row in every:
            self._copy(row, every)
        states = [_state(row) for row in every if row.decoding or not is_read_by(row, every)]
        chunk, packed = self.rows.chunk, self.rows.packed
        counts = plan(states, chunk=chunk, packed=packed, decoded_last=self._decoded_last)
        going = []
        for request, row in rows:
            assert row.number is not None
            if n := counts.get(row.number):
                wanted = max(0, row.read + n - max(row.read, row.wanted_from))
                feed = Feed(row.number, row.tokens[row.read : row.read + n], wanted)
                going.append(Going(request, row, feed))
        self._decoded_last = any(row.decoding for _, row, _ in going)
        return going

    def _copy(self, row: Row, others: list[Row]) -> None:
        """Copy the beginning of a row from another one, if that holds more of it."""
        if row.decoding or not (found := held_elsewhere(row, others, most=self._copied(row))):
            return
        other, n = found
        if not self.rows.packed:  # a prompt's tokens alone, see _store
            n = min(n, other.wanted_from + 1)
        if n > row.read:
            assert row.number is not None and other.number is not None
            self.rows.write(row.number, n, self.rows.read(other.number, 0, n))
            self.prefixes.hits += 1
            self.prefixes.hit_tokens += n - row.read
            row.read = n

    def _add_drafts(self, speculation: Speculation, going: list[Going]) -> None:
        """Add guesses of the next tokens to the rows that decode."""
        texts = {
            at: one.request.work
            for at, one in enumerate(going)
            if isinstance(one.request.work, Generate)
            and one.request.work.takes_drafts
            and one.row.decoding
        }
        tokens = sum(len(feed.ids) for *_, feed in going)
        try:
            speculation.guess(
                list(texts.values()), tokens=tokens, rows=len(going), most=self.rows.chunk
            )
        except BaseException:  # Ctrl-C
            speculation.reset()
            raise
        for at, text in texts.items():
            if text.drafts:
                request, row, feed = going[at]
                ids = [*feed.ids, *text.drafts]
                going[at] = Going(request, row, Feed(feed.row, ids, feed.wanted + len(text.drafts)))

    def run(self, going: list[Going]) -> None:
        """Run the graph, and let each work use its logits.

        An error of a work ends its request alone. Raises what the graph raises.
        """
        self.steps += 1
        asked = began = time.perf_counter()
        if self.speculation is not None:
            self._add_drafts(self.speculation, going)
            began = time.perf_counter()
        results = self._run_graph(going)
        now = time.perf_counter()
        requests: dict[Request, int] = {}  # and the number of drafts of each
        for (request, row, feed), logits in zip(going, results):
            self.prompt_tokens += min(len(feed.ids), max(row.wanted_from + 1 - row.read, 0))
            row.read += len(feed.ids)
            if feed.wanted:
                row.logits, request.taking = logits, True
                requests[request] = max(row.read - len(row.tokens), 0)
        self.whole = True
        interruption: BaseException | None = None
        for request, drafted in requests.items():
            try:
                self._take(request, drafted, now, now - asked)
            except BaseException as error:  # Ctrl-C: the other requests go on
                interruption = error
        if self.speculation is not None and self._decoded_last:
            tokens = sum(len(feed.ids) for *_, feed in going)
            if tokens <= LOGITS_AT_ONCE:
                self.speculation.observe(tokens, now - began)
        if interruption is not None:
            raise interruption

    def _run_graph(self, going: Sequence[Going]) -> list[np.ndarray]:
        """Run the graph. The rows are not `whole` until what they have read is noted."""
        self.whole = False
        try:
            return self.rows.run([feed for *_, feed in going])
        except BaseException:
            self.whole = all(self.rows.length(feed.row) == row.read for _, row, feed in going)
            raise

    def _take(self, request: Request, drafted: int, now: float, seconds: float) -> None:
        """Hand a work its logits, if all its rows have theirs."""
        work, before = request.work, request.work.generated
        rows = [row for row in work.rows if row.tokens]
        logits = [row.logits for row in rows if row.logits is not None]
        if len(logits) < len(rows):  # another row is still reading: the next step overwrites these
            for row in rows:
                row.logits = None if row.logits is None else row.logits.copy()
            request.taking = False
            return
        try:
            for row in rows:
                row.logits = None
            work.take(logits, now=now, seconds=seconds)
            new = work.generated - before
            self.new_tokens += new
            if drafted:
                assert isinstance(work, Generate) and self.speculation is not None
                self.speculation.judge(work.source, drafted, new - 1)
                work.transcript.drafted += drafted
                work.transcript.accepted += new - 1
            for row in rows:
                assert row.number is not None
                self.rows.keep(row.number, row.read)
        except BaseException as error:
            if is_from_outside(error):
                raise
            request.error = raisable(error)
        request.taking = False


def raisable(error: BaseException) -> BaseException:
    """The error to raise to the caller. One that ends a loop in silence becomes another."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    other = RuntimeError(f"a function of the app raised {type(error).__name__}")
    other.__cause__ = error
    return other


def is_from_outside(error: BaseException) -> bool:
    """Whether an error may come from a signal, not from a function of the app (Ctrl-C)."""
    signals = isinstance(error, KeyboardInterrupt | SystemExit)
    return signals and threading.current_thread() is threading.main_thread()


def _last_token(row: Row) -> Feed:
    assert row.number is not None
    return Feed(row.number, row.tokens[-1:], 1)


def _state(row: Row) -> RowState:
    assert row.number is not None
    unread = len(row.tokens) - row.read
    if len(row.tokens) > row.wanted_from + 1:  # the logits of several tokens are wanted
        unread = min(unread, max(row.wanted_from - row.read, 0) + LOGITS_AT_ONCE)
    return RowState(row.number, unread, row.read, row.decoding)

"""A step of the engine: tokens of the requests that have a row in, what they want out.

plan (scheduler.py) -> drafts (speculation.py) -> Rows.run -> Work.take
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gptx.engine.draft_model import DraftModel
from gptx.engine.generate import Generate
from gptx.engine.prefix_cache import PrefixCache
from gptx.engine.request import Request
from gptx.engine.scheduler import RowState, plan
from gptx.engine.speculation import Speculation
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows

# Tokens of a row in one step whose logits are all wanted: 64 rows of 50,000 logits take 13 MB.
LOGITS_AT_ONCE = 64

Going = list[tuple[Request, Feed]]


@dataclass
class Steps:
    """The requests that have a row, and the rows.

    running: these requests, in the order in which they came. prefixes: beginnings that were read.
    steps: runs of the graph. prompt_tokens: tokens of prompts that were read. new_tokens: tokens
    that were generated.

    Threads: only one thread at a time may call it.
    """

    rows: Rows
    prefixes: PrefixCache
    speculation: Speculation | None  # None: no drafts
    running: list[Request] = field(default_factory=list)
    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    _decoded_last: bool = False

    @property
    def bytes(self) -> int:
        """The memory of the rows, and of the draft model's."""
        return self.rows.bytes + (self._draft.bytes if self._draft else 0)

    def bytes_with(self, longest: Sequence[int]) -> int:
        """The memory that rows of these lengths need, in tokens, with the draft model's."""
        return self.rows.bytes_with(longest) + (
            self._draft.bytes_with(longest) if self._draft else 0
        )

    def shrink(self, budget: int) -> None:
        """Drop stored beginnings until they take at most `budget` bytes.

        The model and its draft model share it by the bytes of a token, so that both can store the
        same texts.
        """
        budget = min(budget, self.prefixes.budget)
        if self._draft is not None:
            part = budget * self._draft.bytes_with([1]) // self.bytes_with([1])
            self._draft.prefixes.shrink(part)
            budget -= part
        self.prefixes.shrink(budget)

    @property
    def prefix_caches(self) -> list[PrefixCache]:
        """The stored beginnings of the model, and of the draft model."""
        return [self.prefixes, *([self._draft.prefixes] if self._draft else [])]

    @property
    def _draft(self) -> DraftModel | None:
        return self.speculation.draft if self.speculation is not None else None

    def begin(self, request: Request) -> None:
        """Give a request a row, with the beginning of its prompt if that was read before."""
        request.row = self.rows.open()
        self.running.append(request)
        # The last token is read in any case, as its logits are wanted. ONNX Runtime's operators
        # read a single token in another kernel than those of a prompt, so there two are left.
        most = request.work.wanted_from - (not self.rows.packed)
        n, parts = self.prefixes.find(request.work.tokens[: max(most, 0)])
        if n:
            self.rows.write(request.row, n, parts)
            request.read = n

    def end(self, request: Request) -> None:
        """Take the row of a request away, and store what it holds."""
        row, work = request.row, request.work
        assert row is not None
        n = min(request.read, len(work.tokens))
        if not self.rows.packed:
            # ONNX Runtime's operators read tokens of a prompt and those that were generated in two
            # kernels, which differ in the last bit.
            n = min(n, work.wanted_from + 1) if work.wanted_from else 0
        if n and request.error is None:
            self.prefixes.store(work.tokens[:n], lambda start, end: self.rows.read(row, start, end))
        self.running.remove(request)
        self.rows.close(row)
        if self.speculation is not None:
            self.speculation.forget(work)
        request.row = None

    def plan(self) -> Going:
        """What each row feeds in the next step."""
        if all(request.decoding for request in self.running):  # the usual case
            going = [(one, _last_token(one)) for one in self.running]
            self._decoded_last = True
        else:
            going = self._plan_mixed()
        return going

    def _plan_mixed(self) -> Going:
        states = [_state(request) for request in self.running]
        rows = self.rows
        counts = plan(states, chunk=rows.chunk, packed=rows.packed, decoded_last=self._decoded_last)
        going = []
        for request in self.running:
            assert request.row is not None
            if n := counts.get(request.row):
                start, work = request.read, request.work
                wanted = max(0, start + n - max(start, work.wanted_from))
                going.append((request, Feed(request.row, work.tokens[start : start + n], wanted)))
        self._decoded_last = any(request.decoding for request, _ in going)
        return going

    def _add_drafts(self, speculation: Speculation, going: Going) -> None:
        """Add guesses of the next tokens to the rows that decode."""
        texts = {
            at: request.work
            for at, (request, _) in enumerate(going)
            if isinstance(request.work, Generate) and request.decoding
        }
        tokens = sum(len(feed.ids) for _, feed in going)
        speculation.guess(
            list(texts.values()), tokens=tokens, rows=len(going), most=self.rows.chunk
        )
        for at, text in texts.items():
            if text.drafts:
                request, feed = going[at]
                ids = [*feed.ids, *text.drafts]
                going[at] = request, Feed(feed.row, ids, feed.wanted + len(text.drafts))

    def run(self, going: Going) -> None:
        """Run the graph, and let each work use its logits.

        An error of a work ends its request alone. Raises what the graph raises.
        """
        self.steps += 1
        asked = began = time.perf_counter()
        if self.speculation is not None:
            self._add_drafts(self.speculation, going)
            began = time.perf_counter()
        results = self.rows.run([feed for _, feed in going])
        now = time.perf_counter()
        for (request, feed), logits in zip(going, results):
            self._take(request, feed, logits, now, now - asked)
        if self.speculation is not None and self._decoded_last:
            tokens = sum(len(feed.ids) for _, feed in going)
            if tokens <= LOGITS_AT_ONCE:
                self.speculation.observe(tokens, now - began)

    def _take(
        self, request: Request, feed: Feed, logits: np.ndarray, now: float, seconds: float
    ) -> None:
        work, read, before = request.work, request.read, request.work.generated
        drafted = max(read + len(feed.ids) - len(work.tokens), 0)
        self.prompt_tokens += min(len(feed.ids), max(work.wanted_from + 1 - read, 0))
        if not feed.wanted:
            request.read += len(feed.ids)
            return
        request.taking = True
        try:
            request.read = work.take(logits, now=now, seconds=seconds)
            new = work.generated - before
            self.new_tokens += new
            if drafted:
                assert isinstance(work, Generate) and self.speculation is not None
                self.speculation.judge(work.source, drafted, new - 1)
                work.transcript.drafted += drafted
                work.transcript.accepted += new - 1
            if request.read < read + len(feed.ids):
                self.rows.keep(feed.row, request.read)
        except Exception as error:
            request.error = error
        request.taking = False


def _last_token(request: Request) -> Feed:
    assert request.row is not None
    return Feed(request.row, request.work.tokens[-1:], 1)


def _state(request: Request) -> RowState:
    work = request.work
    assert request.row is not None
    unread = len(work.tokens) - request.read
    if len(work.tokens) > work.wanted_from + 1:  # the logits of several tokens are wanted
        unread = min(unread, max(work.wanted_from - request.read, 0) + LOGITS_AT_ONCE)
    return RowState(request.row, unread, request.read, request.decoding)

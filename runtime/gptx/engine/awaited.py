"""Streams for asyncio: await their completions, or iterate over their pieces."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from gptx.engine.stream import Stream
from gptx.generation.transcript import Completion


class OpenStream(Protocol):
    """Opens a Stream whose prompt and options were checked; see LoadedModel.stream_ids."""

    def __call__(
        self,
        *,
        unattended: bool = False,
        continues: bool = False,
        on_step: Callable[[], object] | None = None,
    ) -> Stream: ...


async def completions(calls: Sequence[OpenStream], *, at_once: int) -> list[Completion]:
    """Wait for texts without blocking the event loop, for `at_once` of them at a time.

    Cancelling the task cancels the texts.
    """
    left, found, growing = iter(calls), [], deque[Stream]()
    news = _News(growing)
    try:
        while True:
            for open_one in islice(left, at_once - len(growing)):
                continues = bool(growing or found)
                growing.append(open_one(unattended=True, on_step=news.tell, continues=continues))
            if not growing:
                return found
            while not growing[0].has_ended():
                await news.wait()
            found += growing.popleft().results()
    finally:
        for stream in growing:
            stream.close()


async def pieces(open_one: OpenStream) -> AsyncIterator[str]:
    """The pieces of one text, as they come. Leaving the iteration closes the text."""
    streams: list[Stream] = []
    news = _News(streams)
    with open_one(unattended=True, on_step=news.tell) as stream:
        streams.append(stream)
        while True:
            while not stream.has_news():
                await news.wait()
            piece = next(stream, None)
            if piece is None:
                return
            yield piece


class _News:
    """Wakes a task when the engine, in another thread, has news of its streams."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        self._streams = streams

    def tell(self) -> None:
        """Called by the engine."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop was closed: nobody reads the texts any more
            for stream in self._streams:
                stream.close()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

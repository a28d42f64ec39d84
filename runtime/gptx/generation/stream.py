"""Generated tokens as text with timings: the decode loop's steps in, text and a Completion out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from gptx.errors import UsageError, shown
from gptx.generation.loop import FinishReason, Generation, Step
from gptx.generation.session import Session
from gptx.text.detokenizer import Detokenizer
from gptx.text.stop_strings import StopStrings


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    text: the generated text, without the token or the stop string that ended it. None if the
    artifact has no tokenizer.
    token_ids: all generated tokens, with the token that ended the text and those of a stop string.
    prompt_tokens: the number of tokens in the prompt.
    seed: the seed of the random draws; None if decoding was greedy.
    time_to_first_token: seconds from the call to the first token.
    tokens_per_second: speed after the first token; 0 if there is only one.

    finish_reason says why generation ended:
    - "stop": the model gave a token that ends a text, or the text reached one of the stop strings.
    - "length": max_new_tokens were generated.
    - "context": the model's context is full.
    - "closed": the reader closed the stream before its end.
    - None: the stream has not ended yet.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    seed: int | None
    time_to_first_token: float
    tokens_per_second: float


@dataclass
class Transcript:
    """One row's generated tokens, text and timings so far."""

    detokenizer: Detokenizer | None
    stop_strings: StopStrings | None  # None without a tokenizer
    prompt_tokens: int
    seed: int | None
    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    _pieces: list[str] = field(default_factory=list)
    _held: str = ""  # text that may belong to a stop string

    def push(self, step: Step) -> str:
        """Add a token and return the text that may be shown now.

        `finish` is set if the row ends.
        """
        self.token_ids.append(step.token)
        self.finish = step.finish
        if self.detokenizer is None or self.stop_strings is None:
            return ""
        shown = step.finish != "stop"  # the token that ends a text is not shown
        text = self._held + (self.detokenizer.push(step.token) if shown else "")
        if self.stop_strings.push(step.token, visible=shown):
            self.finish = "stop"
        if self.finish:
            text += self.detokenizer.flush()
        held = self.stop_strings.withheld if self.stop_strings.found or not self.finish else 0
        certain = max(len(text) - held, 0)
        piece, self._held = text[:certain], text[certain:]
        if piece:
            self._pieces.append(piece)
        return piece

    def timed(self, *, since_call: float, step: float) -> None:
        if len(self.token_ids) == 1:
            self.time_to_first_token = since_call
        else:
            self.decode_seconds += step

    def completion(self) -> Completion:
        decoded = len(self.token_ids) - 1
        return Completion(
            text=None if self.detokenizer is None else "".join(self._pieces),
            token_ids=list(self.token_ids),
            finish_reason=self.finish,
            prompt_tokens=self.prompt_tokens,
            seed=self.seed,
            time_to_first_token=self.time_to_first_token,
            tokens_per_second=decoded / self.decode_seconds if self.decode_seconds else 0.0,
        )


def run_to_end(
    generation: Generation, transcripts: Sequence[Transcript], *, began: float
) -> list[Completion]:
    """Run a batch until every row has ended. `began`: time.perf_counter() at the call."""
    before = began
    for steps in generation:
        now = time.perf_counter()
        for step in steps:
            transcript = transcripts[step.row]
            transcript.push(step)
            transcript.timed(since_call=now - began, step=now - before)
            if transcript.finish:
                generation.finish(step.row)
        before = now
    return [transcript.completion() for transcript in transcripts]


class Stream:
    """Generated text, piece by piece: iterate over it.

    A piece is never empty and never ends within a character. `completion` holds the text so far,
    the token ids, the reason why the stream ended and timings. `close`, or leaving a `with` block,
    ends the stream early. If the artifact has no tokenizer, iterating gives no pieces, and
    `completion` has only the token ids.

    Threads: one thread at a time may iterate; a second one gets UsageError. `close` may be called
    from any thread. If another thread is computing a token at that moment, the stream ends after
    it.
    """

    def __init__(
        self,
        generation: Generation,
        transcript: Transcript,
        *,
        began: float,
        owned: Session | None = None,
        on_end: Callable[[Completion], None] | None = None,
    ) -> None:
        self._generation, self._transcript = generation, transcript
        self._began, self._owned, self._on_end = began, owned, on_end
        self._ended = False
        self._asked_to_end = False  # set by close while a step runs
        self._stepping = False
        self._half_done = False  # a step runs, or has failed, or was interrupted
        # held while a thread reads the next piece or ends the stream
        self._lock = threading.RLock()
        self._reader = threading.current_thread()  # the thread that read last

    @property
    def completion(self) -> Completion:
        """What was generated so far."""
        return self._transcript.completion()

    def __iter__(self) -> Self:
        return self

    def is_read_elsewhere(self) -> bool:
        """Whether the stream goes on, and the last thread to read it is another one that still
        runs.
        """
        if self._ended or self._asked_to_end or self._reader is threading.current_thread():
            return False
        return self._reader.is_alive()

    def __next__(self) -> str:
        if not self._lock.acquire(False):
            raise UsageError("another thread is reading this stream: let one thread read it")
        try:
            self._stepping, self._reader = True, threading.current_thread()
            return self._next_piece()
        finally:
            self._stepping = False
            self._lock.release()
            if self._asked_to_end:
                self.close()

    def _next_piece(self) -> str:
        while not self._ended and not self._asked_to_end:
            if self._half_done:  # the model may have read a token that the text does not have
                raise UsageError(
                    "this stream failed or was interrupted in the middle of a step: close it and"
                    " generate again"
                )
            self._half_done = True
            before = time.perf_counter()
            steps = next(self._generation)
            now = time.perf_counter()
            piece = self._transcript.push(steps[0])
            self._transcript.timed(since_call=now - self._began, step=now - before)
            if self._transcript.finish:
                self._end()
            self._half_done = False
            if piece:
                return piece
        raise StopIteration

    def close(self, *, wait: bool = False) -> None:
        """End the stream. wait: return only after a step that runs in another thread has ended."""
        if not isinstance(wait, bool):
            raise UsageError(f"wait is {shown(wait)}, expected True or False")
        self._asked_to_end = True
        # If a step runs in another thread, its __next__ calls close after it has released the lock.
        if not self._lock.acquire(wait):
            return
        try:
            # While stepping, this is a signal handler in the middle of this thread's own step.
            if not self._stepping:
                self._end()
        finally:
            self._lock.release()

    def _end(self) -> None:
        if self._ended:
            return
        self._transcript.finish = self._transcript.finish or "closed"
        if self._owned is not None:
            self._owned.close()
        if self._on_end is not None:
            self._on_end(self.completion)
        self._ended = True  # last: where Ctrl-C interrupts it, the next `close` ends it again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

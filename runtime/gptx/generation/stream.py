"""Generated tokens as text with timings: steps of the token loop in, text and a Completion out."""

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

    Fields:

    - text: the new text, without the stop string that ended it. None if the artifact has no
      tokenizer.
    - token_ids: all new tokens, including the token that ended the text and those of a stop string.
    - finish_reason: why generation ended, see below.
    - prompt_tokens: the number of tokens in the prompt.
    - seed: the seed of the random draws. None: decoding was greedy.
    - time_to_first_token: seconds from the call to the first token.
    - tokens_per_second: the speed after the first token; 0 if there is only one token.

    Finish reasons:

    - "stop": the model generated a token that ends the text, or a stop string occurred.
    - "length": the limit was reached: max_new_tokens, or max_length of generation_config.json.
    - "context": the model's context is full.
    - "closed": the stream was closed before its end.
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
    """The tokens, text and timings of one row while it is generated.

    detokenizer, stop_strings: None if the artifact has no tokenizer; then there is no text.
    """

    detokenizer: Detokenizer | None
    stop_strings: StopStrings | None
    prompt_tokens: int
    seed: int | None
    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    _pieces: list[str] = field(default_factory=list)
    _withheld: str = ""  # text that may become part of a stop string

    def push(self, step: Step) -> str:
        """Add the token of a step. Returns the new text that can be shown, which may be "".

        Text that may become part of a stop string is withheld until later tokens decide it. A stop
        string sets `finish`.
        """
        self.token_ids.append(step.token)
        self.finish = step.finish
        if self.detokenizer is None or self.stop_strings is None:
            return ""
        shown = step.finish != "stop"  # the text of the token that ends a row is not shown
        text = self._withheld + (self.detokenizer.push(step.token) if shown else "")
        if self.stop_strings.push(step.token, visible=shown):
            self.finish = "stop"
        if self.finish:
            text += self.detokenizer.flush()
        # If no stop string occurred, the end of the text is shown even if it could begin one.
        ends_whole = self.finish and not self.stop_strings.found
        certain = max(len(text) - (0 if ends_whole else self.stop_strings.withheld), 0)
        piece, self._withheld = text[:certain], text[certain:]
        if piece:
            self._pieces.append(piece)
        return piece

    def add_time(self, *, since_call: float, step: float) -> None:
        """Count the time of the step that was added last, in seconds.

        since_call: from the call of generate to the end of the step. step: of the step alone.
        """
        if len(self.token_ids) == 1:
            self.time_to_first_token = since_call
        else:
            self.decode_seconds += step

    def completion(self) -> Completion:
        """The Completion of what was generated so far."""
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
    """Run all rows of a batch until each has ended, and return their completions.

    began: time.perf_counter() at the call of generate.
    """
    before = began
    for steps in generation:
        now = time.perf_counter()
        for step in steps:
            transcript = transcripts[step.row]
            transcript.push(step)
            transcript.add_time(since_call=now - began, step=now - before)
            if transcript.finish:
                generation.finish(step.row)
        before = now
    return [transcript.completion() for transcript in transcripts]


class Stream:
    """Text while it is generated: iterate over it to get the text in pieces.

    Model.stream and Chat.stream return a Stream. The model computes when a piece is asked for. A
    piece is never empty, and never ends within a character. `completion` has the text so far, the
    token ids, the finish reason and timings. `close`, or leaving a `with` block, ends the stream
    early. If the artifact has no tokenizer, iterating gives no pieces, and `completion` has only
    the token ids.

    Iterating raises ArtifactError if the model fails, and UsageError if the options forbid every
    token.

    Threads: one thread at a time may iterate; a second one gets UsageError. Any thread may call
    `close`: if another thread is computing a token at that moment, the stream ends after that
    token.
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
        self._asked_to_end = False  # close was called; a step may still run
        self._stepping = False
        # True while a step runs, and for good if one fails or is interrupted
        self._half_done = False
        # Held by the thread that reads the next piece, or that ends the stream
        self._lock = threading.RLock()
        self._reader = threading.current_thread()  # the thread that read last

    @property
    def completion(self) -> Completion:
        """What was generated so far, and all of it once the stream has ended."""
        return self._transcript.completion()

    def __iter__(self) -> Self:
        return self

    def is_read_elsewhere(self) -> bool:
        """Whether the stream goes on and was last read by another thread, which still runs."""
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
            if self._half_done:  # the KV cache may hold a token that the text lacks
                raise UsageError(
                    "this stream failed or was interrupted in the middle of a step: close it and"
                    " generate again"
                )
            self._half_done = True
            before = time.perf_counter()
            steps = next(self._generation)
            now = time.perf_counter()
            piece = self._transcript.push(steps[0])
            self._transcript.add_time(since_call=now - self._began, step=now - before)
            if self._transcript.finish:
                self._end()
            self._half_done = False
            if piece:
                return piece
        raise StopIteration

    def close(self, *, wait: bool = False) -> None:
        """End the stream. Its text so far stays in `completion`.

        wait: if another thread is computing a token, return only after that token. Otherwise
        `close` returns at once, and that thread ends the stream.
        """
        if not isinstance(wait, bool):
            raise UsageError(f"wait is {shown(wait)}, expected True or False")
        self._asked_to_end = True
        # If another thread holds the lock, it calls close itself after it has released the lock.
        if not self._lock.acquire(wait):
            return
        try:
            # While stepping, this is a signal handler that interrupted this thread's own step.
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
        self._ended = True  # set last: if Ctrl-C interrupts this, the next `close` does it again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

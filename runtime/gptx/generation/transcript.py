"""The tokens of one text while it is generated, with their text and timings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Self, TypeVar

from gptx.generation.logprobs import Logprobs
from gptx.generation.row_plan import FinishReason
from gptx.text.detokenizer import Detokenizer
from gptx.text.stop_strings import StopStrings

T = TypeVar("T")


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
    - drafted, accepted: tokens that speculation guessed, and those that were right.
    - logprobs: the log-probability of each new token, in nats; None unless asked for.
    - top_logprobs: for each new token, the log-probabilities of the likeliest, by token id; None
      unless asked for.
    - prompt_logprobs, prompt_top_logprobs: the same of the prompt's tokens. The first one has None.
    - score: of a beam search, the sum of the new tokens' log-probabilities, divided by
      length ** length_penalty; else None.

    Finish reasons:

    - "stop": the model generated a token that ends the text, or a stop string occurred. Or the
      grammar allows nothing more, and the model has no token that ends a text.
    - "length": the limit was reached: max_new_tokens, or max_length of generation_config.json.
    - "context": the model's context is full.
    - "time": the time was up (max_time).
    - "closed": it was cancelled, or its stream closed, before its end.
    - None: the text has not ended yet.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    seed: int | None
    time_to_first_token: float
    tokens_per_second: float
    drafted: int = 0
    accepted: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    score: float | None = None


@dataclass
class Transcript:
    """What was generated so far for one prompt.

    detokenizer, stop_strings: None if the artifact has no tokenizer; then there is no text.
    began: time.perf_counter() at the call.
    """

    detokenizer: Detokenizer | None
    stop_strings: StopStrings | None
    prompt_tokens: int
    seed: int | None
    began: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # the text that can be shown after each token
    logprobs: list[float] | None = None  # None: not asked for; so are the next three
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    score: float | None = None
    drafted: int = 0
    accepted: int = 0
    finish: FinishReason | None = None
    first_token: float = 0.0  # seconds from the call to the first token
    ends: list[float] = field(default_factory=list)  # seconds of decode steps, up to each token
    _withheld: str = ""  # text that may become part of a stop string

    def push(self, token: int, finish: FinishReason | None, *, complete: bool = False) -> str:
        """Add a token. Returns the new text that can be shown, which may be "".

        finish: why the text ends with this token; None: it goes on. Text that may become part of a
        stop string is withheld until later tokens decide it. A stop string sets `finish`.
        complete: the text ends with this token, and the token's text is shown.
        """
        piece = self._text_of(token, finish, complete)
        self.token_ids.append(token)
        self.pieces.append(piece)
        return piece

    def _text_of(self, token: int, finish: FinishReason | None, complete: bool) -> str:
        if self.detokenizer is None or self.stop_strings is None:
            self.finish = finish
            return ""
        shown = finish != "stop"  # the text of the token that ends a row is not shown
        text = self._withheld + (self.detokenizer.push(token) if shown else "")
        if self.stop_strings.push(token, visible=shown) or complete:
            finish = "stop"
        if finish:
            text += self.detokenizer.flush()
        # If no stop string occurred, the end of the text is shown even if it could begin one.
        ends_whole = finish and not self.stop_strings.found
        certain = max(len(text) - (0 if ends_whole else self.stop_strings.withheld), 0)
        self._withheld, self.finish = text[certain:], finish
        return text[:certain]

    def begin_logprobs(self, *, top: bool) -> None:
        """Keep the log-probabilities of new tokens. top: those of the likeliest ones, too."""
        self.logprobs, self.top_logprobs = [], [] if top else None

    def add_logprobs(self, logprobs: Logprobs, token: int) -> None:
        """Keep the log-probability of the token that was added last, and of the likeliest ones."""
        _add(self.logprobs, logprobs.of(token))
        _add(self.top_logprobs, logprobs.top)

    def begin_prompt_logprobs(self, *, top: bool) -> None:
        """Do what `begin_logprobs` does for the prompt's tokens. Its first token has none."""
        self.prompt_logprobs, self.prompt_top_logprobs = [None], [None] if top else None

    def add_prompt_logprobs(self, logprobs: Logprobs, token: int) -> None:
        """Keep those of the prompt's next token."""
        _add(self.prompt_logprobs, logprobs.of(token))
        _add(self.prompt_top_logprobs, logprobs.top)

    def copy(self) -> Self:
        """A transcript that goes on from here by itself."""
        twin = copy.copy(self)
        twin.detokenizer = self.detokenizer and self.detokenizer.copy()
        twin.stop_strings = self.stop_strings and self.stop_strings.copy()
        twin.token_ids, twin.pieces, twin.ends = [*self.token_ids], [*self.pieces], [*self.ends]
        twin.logprobs, twin.top_logprobs = _first(self.logprobs), _first(self.top_logprobs)
        return twin

    def become(self, other: Self) -> None:
        """Take over what another transcript of the same prompt holds; this one is still empty."""
        self.token_ids += other.token_ids
        self.logprobs, self.top_logprobs = other.logprobs, other.top_logprobs
        self.first_token, self.ends, self.score = other.first_token, other.ends, other.score
        self.finish = other.finish
        self.pieces += other.pieces  # readers wait for these, so they come last

    def add_time(self, *, since_call: float, step: float) -> None:
        """Count the time of the token that was added last, in seconds.

        since_call: from the call to the end of its step. step: of its step alone, or its share of a
        step that gave several tokens.
        """
        if self.ends:
            self.ends.append(self.ends[-1] + step)
        else:
            self.first_token = since_call
            self.ends.append(0.0)

    def completion(self, n: int | None = None) -> Completion:
        """The Completion of the first `n` tokens, or of all."""
        n = len(self.token_ids) if n is None else n
        seconds = self.ends[min(n, len(self.ends)) - 1] if n and self.ends else 0.0
        return Completion(
            text=None if self.detokenizer is None else "".join(self.pieces[:n]),
            token_ids=self.token_ids[:n],
            finish_reason=self.finish if n == len(self.token_ids) else None,
            prompt_tokens=self.prompt_tokens,
            seed=self.seed,
            time_to_first_token=self.first_token if n else 0.0,
            tokens_per_second=(n - 1) / seconds if seconds else 0.0,
            drafted=self.drafted,
            accepted=self.accepted,
            logprobs=_first(self.logprobs, n),
            top_logprobs=_first(self.top_logprobs, n),
            prompt_logprobs=self.prompt_logprobs,
            prompt_top_logprobs=self.prompt_top_logprobs,
            score=self.score,
        )


def _add(values: list[T] | None, value: T) -> None:
    if values is not None:
        values.append(value)


def _first(values: list[T] | None, n: int | None = None) -> list[T] | None:
    """A copy of the first `n` values, or of all."""
    return None if values is None else values[:n]

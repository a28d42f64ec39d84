"""The work of generating one text: logits in, tokens and their text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from gptx.engine.control import Control
from gptx.engine.matcher import Matcher
from gptx.engine.speculation import Suffixes
from gptx.errors import UsageError, shown
from gptx.generation.overflow import slide
from gptx.generation.row_plan import FinishReason, RowPlan
from gptx.generation.sampling import Sampler
from gptx.generation.transcript import Transcript
from gptx.softmax import log_softmax


class Generate:
    """A text that grows by a token with each step; a Work of the engine (request.py).

    ids: the prompt. width: the number of logits that may be sampled from, which are those of
    tokenizer_vocab_size ids and, of a padded vocabulary, of the ids `padded_ends`.
    control: its hooks. n_ctx: the most tokens of a row; if control.overflow is "slide", a longer
    text goes on with its first `keep` tokens and the newest ones. matcher: of the text's grammar.
    """

    def __init__(
        self,
        ids: Sequence[int],
        plan: RowPlan,
        sampler: Sampler,
        transcript: Transcript,
        *,
        tokenizer_vocab_size: int,
        control: Control,
        n_ctx: int,
        keep: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        self.tokens = list(ids)
        self.wanted_from = len(self.tokens) - 1
        # the last token is not fed
        self.longest: int = min(len(self.tokens) + plan.limit - 1, n_ctx)
        self.generated = 0
        self.finish: FinishReason | None = None
        # Of speculation: guesses that are fed behind the last token, and where they come from
        self.drafts: list[int] = []
        self.source = 0
        self.suffixes: Suffixes | None = None
        self.transcript = transcript
        self._plan, self._sampler, self._control = plan, sampler, control
        self._n_ctx, self._keep, self._matcher = n_ctx, keep, matcher
        self._vocab_size = tokenizer_vocab_size
        self._padded_ends = padded_ends(plan, tokenizer_vocab_size)

    def take(self, logits: np.ndarray, *, now: float, seconds: float) -> int:
        """Sample a token from the logits (1, V), and go on as long as drafts were right.

        With drafts, there are more logits: (1 + number of drafts, V).
        """
        held = len(self.tokens)
        for draft, row in zip_longest(self.drafts, logits):
            if self._next(row) != draft or self.finish:
                break
        self.drafts = []
        new = len(self.tokens) - held
        for _ in range(new):
            self.transcript.add_time(since_call=now - self.transcript.began, step=seconds / new)
        if len(self.tokens) > self._n_ctx:
            self.tokens = slide(self.tokens, self._keep, self._n_ctx)
            self.wanted_from = len(self.tokens) - 1
            return 0
        return held + new - 1

    def _next(self, logits: np.ndarray) -> int:
        """Sample a token from the logits (V,), and add it to the text."""
        # The sampler may overwrite the logits
        logprobs = _Logprobs(logits, self._control) if self._control.logprobs else None
        token = self._sampler.sample(self._allowed(logits))
        if self._matcher is not None:
            self._matcher.accept(token)
        finish: FinishReason | None = None
        if token in self._plan.end_tokens:
            finish = "stop"
        elif self.generated + 1 == self._plan.limit:
            finish = self._plan.limit_reason
        piece = self.transcript.push(token, finish)
        if logprobs is not None:
            self.transcript.logprobs.append(logprobs.of(token))
            self.transcript.top_logprobs.append(logprobs.top)
        self.finish = self.transcript.finish
        self.tokens.append(token)
        self.generated += 1
        if self.suffixes is not None:
            self.suffixes.add(token)
        if self._control.on_token is not None:
            self._control.on_token(token, piece)
        return token

    def guesser(self) -> Callable[[np.ndarray], int]:
        """A function that draws the next tokens from a draft model's logits (V,), one a call.

        It draws what the text would draw from these logits: with the same options and random
        numbers. Grammars and the app's functions are left out, as they follow the text itself.
        """
        sampler = self._sampler.copy()
        return lambda logits: sampler.sample(self._without_padding(logits))

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        """The logits (width,) of ids that may be sampled; padded ids are left out or -inf."""
        if self._control.logits_processor is not None:
            logits = self._processed(logits.astype(np.float32))
        allowed = self._without_padding(logits)
        if self._matcher is not None:
            self._matcher.apply(allowed)
        return allowed

    def _without_padding(self, logits: np.ndarray) -> np.ndarray:
        """The logits (width,) of (V,). A draft model may have a padding of another width."""
        if not self._padded_ends:
            return logits[: self._vocab_size]
        known = np.full(self._padded_ends[-1] + 1, -np.inf, logits.dtype)
        known[: self._vocab_size] = logits[: self._vocab_size]
        ends = [end for end in self._padded_ends if end < len(logits)]
        known[ends] = logits[ends]
        return known

    def _processed(self, logits: np.ndarray) -> np.ndarray:
        """What the app's processor makes of the logits (V,). Raises UsageError for other values."""
        assert self._control.logits_processor is not None
        given = self._control.logits_processor(list(self.tokens), logits)
        if given is None:
            return logits
        if not isinstance(given, np.ndarray) or given.shape != logits.shape:
            raise UsageError(
                f"logits_processor returned {shown(given)}, expected None or an array of"
                f" {len(logits):,} logits"
            )
        return given.astype(np.float32)


class _Logprobs:
    """Log-probabilities behind one token, from logits (V,).

    top: those of the likeliest tokens, as many as were asked for, by token id.
    """

    def __init__(self, logits: np.ndarray, control: Control) -> None:
        self._values = log_softmax(logits)
        n = min(control.top_logprobs, len(logits))
        likeliest = np.argpartition(-self._values, n - 1)[:n] if n else []
        ordered = sorted(map(int, likeliest), key=lambda token: (-self._values[token], token))
        self.top = {token: float(self._values[token]) for token in ordered}

    def of(self, token: int) -> float:
        """The log-probability of a token."""
        return float(self._values[token])


def padded_ends(plan: RowPlan, tokenizer_vocab_size: int) -> list[int]:
    """The end tokens that the tokenizer does not know: ids of a padded vocabulary."""
    return sorted(token for token in plan.end_tokens if token >= tokenizer_vocab_size)


def logits_to_sample(plan: RowPlan, tokenizer_vocab_size: int) -> int:
    """The number of logits that a sampler gets: up to the last id that may be sampled."""
    ends = padded_ends(plan, tokenizer_vocab_size)
    return ends[-1] + 1 if ends else tokenizer_vocab_size

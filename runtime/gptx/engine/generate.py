"""The work of generating one text: logits in, tokens and their text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from gptx.engine.allowed import Allowed
from gptx.engine.control import Control
from gptx.engine.guidance import guided
from gptx.engine.matcher import Matcher
from gptx.engine.request import Row
from gptx.engine.suffixes import Place, Suffixes
from gptx.errors import UsageError
from gptx.generation.logprobs import Logprobs
from gptx.generation.overflow import slide
from gptx.generation.row_plan import FinishReason, RowPlan
from gptx.generation.sampling import Sampler
from gptx.generation.transcript import Transcript


class Generate:
    """A text that grows by a token with each step; a Work of the engine (request.py).

    ids: the prompt. allowed: the logits that may be sampled. control: its hooks. n_ctx: the most
    tokens of a row; if control.overflow is "slide", a longer text goes on with its first `keep`
    tokens and the newest ones. matcher: of the text's grammar.

    negative: a prompt whose logits push the text away from it, in a second row, by guidance_scale
    (see guidance.py); None: no guidance.
    """

    def __init__(
        self,
        ids: Sequence[int],
        plan: RowPlan,
        sampler: Sampler,
        transcript: Transcript,
        *,
        allowed: Allowed,
        control: Control,
        n_ctx: int,
        keep: int = 0,
        matcher: Matcher | None = None,
        negative: Sequence[int] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        prompts = [ids] if negative is None else [ids, negative]
        self.rows = [Row(list(prompt), wanted_from=len(prompt) - 1) for prompt in prompts]
        # the last token is not fed
        self.longest: int = min(max(map(len, prompts)) + plan.limit - 1, n_ctx)
        self.generated = 0
        self.finish: FinishReason | None = None
        # Of speculation: guesses that are fed behind the last token, and where they come from
        self.drafts: list[int] = []
        self.source = 0
        self.suffixes: Suffixes | None = None
        self.place: Place | None = None
        self.transcript = transcript
        self._plan, self._sampler, self._control, self._allowed = plan, sampler, control, allowed
        self._n_ctx, self._keep, self._matcher = n_ctx, keep, matcher
        self._guidance_scale = guidance_scale
        if control.prompt_logprobs:
            self.rows[0].wanted_from = 0

    @property
    def tokens(self) -> list[int]:
        """The prompt, and the text so far."""
        return self.rows[0].tokens

    @property
    def output(self) -> list[int]:
        """The new tokens."""
        return self.transcript.token_ids

    @property
    def transcripts(self) -> list[Transcript]:
        """Its only text."""
        return [self.transcript]

    @property
    def takes_drafts(self) -> bool:
        """Whether guesses may be fed behind the last token.

        Not with guidance, whose second row would need them, too. Nor in the step that reads the end
        of a prompt whose log-probabilities are wanted: its logits would be taken for the guesses'.
        """
        return len(self.rows) == 1 and (self.generated > 0 or not self._control.prompt_logprobs)

    def take(self, logits: Sequence[np.ndarray], *, now: float, seconds: float) -> None:
        """Sample a token from the logits (1, V), and go on as long as drafts were right.

        With drafts, there are more logits: (1 + number of drafts, V).
        """
        row, own = self.rows[0], logits[0]
        if self._control.prompt_logprobs and not self.generated:
            self._read_prompt(own)
            if row.read < len(row.tokens):
                return
            row.wanted_from, own = len(row.tokens) - 1, own[-1:]
        if len(logits) > 1:
            own = guided(own[0], logits[1][0], self._guidance_scale)[None]
        held = len(row.tokens)
        for draft, one in zip_longest(self.drafts, own):
            if self._next(one) != draft or self.finish:
                break
        self.drafts = []
        new = len(row.tokens) - held
        for _ in range(new):
            self.transcript.add_time(since_call=now - self.transcript.began, step=seconds / new)
        row.read = held + new - 1
        if len(row.tokens) > self._n_ctx:
            row.tokens = slide(row.tokens, self._keep, self._n_ctx)
            row.wanted_from, row.read = len(row.tokens) - 1, 0

    def _read_prompt(self, logits: np.ndarray) -> None:
        """Keep the log-probabilities of the prompt's tokens, from logits (n, V) of some of them."""
        row = self.rows[0]
        first = row.read - len(logits) + 1
        for one, token in zip(logits, row.tokens[first : row.read + 1]):
            self.transcript.add_prompt_logprobs(Logprobs(one, self._control.top_logprobs), token)

    def _next(self, logits: np.ndarray) -> int:
        """Sample a token from the logits (V,), and add it to the text."""
        # The sampler may overwrite the logits
        control = self._control
        logprobs = Logprobs(logits, control.top_logprobs) if control.logprobs else None
        allowed = self._allowed.select(logits, self.tokens)
        if self._matcher is not None:
            self._matcher.apply(allowed)
        token = self._sampler.sample(allowed)
        complete = False
        if self._matcher is not None:
            self._matcher.accept(token)
            # Without an end token, the text cannot say so itself
            complete = not self._matcher.end_tokens and self._matcher.is_finished
        finish = self._plan.finish(token, self.generated + 1)
        piece = self.transcript.push(token, finish, complete=complete)
        if logprobs is not None:
            self.transcript.add_logprobs(logprobs, token)
        self.finish = self.transcript.finish
        for row in self.rows:
            row.tokens.append(token)
        self.generated += 1
        if self.suffixes is not None:
            self.suffixes.add(token)
        if control.on_token is not None:
            control.on_token(token, piece)
        return token

    def forced(self) -> list[int]:
        """The next tokens, as far as the grammar leaves no choice; [] without a grammar."""
        if self._matcher is None:
            return []
        try:
            return self._matcher.forced()
        except UsageError:  # raised again where this text's next token is drawn: others go on
            return []

    def guesser(self) -> Callable[[np.ndarray], int]:
        """A function that draws the next tokens from a draft model's logits (V,), one a call.

        It draws what the text would draw from these logits: with the same options and random
        numbers. Grammars and the app's functions are left out, as they follow the text itself.
        """
        sampler, allowed = self._sampler.copy(), replace(self._allowed, processor=None)
        return lambda logits: sampler.sample(allowed.select(logits, ()))

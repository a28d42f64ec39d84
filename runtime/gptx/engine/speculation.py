"""Drafts: tokens that are guessed, fed with the last one, and kept if the model says the same.

A step with some tokens more takes little longer, as the weights are read once for all of them. The
logits behind a right guess are those that a step of its own would give, to the bit, on native
operators; so the text is the same, greedy or sampled.

Guesses come from three sources: tokens that the text's grammar forces; what followed where the
longest end of the text occurred before, in it or in an earlier output of the model; and a draft
model (draft_model.py), if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple, Protocol

import numpy as np

from gptx.engine.draft_model import DraftModel, Wanted
from gptx.engine.scheduler import BESIDE
from gptx.engine.step_cost import StepCost
from gptx.engine.suffixes import Place, Suffixes

MOST = 7  # drafts of a row in a step
LONGEST_MATCH = 8  # longer matches are as good as this
# A source is given by the length of its match; these are the draft model and a grammar
MODEL, FORCED = LONGEST_MATCH + 1, LONGEST_MATCH + 2
# Where drafts do not pay, one is tried after so many rows, to see whether they do now: later if the
# try takes longer than a step, as when the draft model must read a prompt first
RETRY = 24
MOST_EARLIER = 20_000  # tokens of earlier outputs; they take some 10 MB
BREAK = -1  # between them
TYPICAL = 128  # tokens that a text grows by, if its limit is not lower
SHORTEST_STEP = 2e-3  # seconds; looking for a guess takes some 10 microseconds


class Text(Protocol):
    """A text that grows, as speculation sees it (generate.py has the class).

    tokens: prompt and text. output: the new tokens. longest: the most tokens of the row. suffixes:
    of the text; None until it is first asked. place: where its end is in the earlier outputs.
    drafts, source: what was guessed, and where from, see MODEL.
    """

    longest: int
    suffixes: Suffixes | None
    place: Place | None
    drafts: list[int]
    source: int

    @property
    def tokens(self) -> list[int]: ...

    @property
    def output(self) -> list[int]: ...

    def forced(self) -> list[int]:
        """The next tokens, as far as a grammar leaves no choice."""
        ...

    def guesser(self) -> Callable[[np.ndarray], int]:
        """A function that draws the next tokens from a draft model's logits (V,), one a call."""
        ...


def worth(
    rate: float, cost: StepCost, tokens: int, rows: int, most: int, guess: float = 0.0
) -> tuple[int, float]:
    """How many drafts of a row make the texts grow fastest, and how fast: tokens a second.

    rate: how likely a guess is right. cost: of steps. tokens, rows: those that the step has
    already. guess: seconds that it takes to guess a token. A draft is worth it while it gives more
    tokens a second than the step without it.
    """
    fixed, each = cost.line
    seconds, expected, chance, n = fixed + each * tokens, float(rows), 1.0, 0
    for n in range(most + 1):
        chance *= rate
        if n == most or chance * seconds < (1.1 * each + guess) * expected:  # a tenth: sampling it
            break
        expected += chance
        seconds += each + guess
    return n, expected / seconds if seconds else 0.0


class Source(NamedTuple):
    """Where the guesses of one text may come from.

    source: the length of the match, MODEL or FORCED. most: the most tokens. guess: seconds that a
    token takes; first: seconds that a single one takes now, with what must be read for it.
    """

    source: int
    most: int
    guess: float = 0.0
    first: float = 0.0


class Speculation:
    """Drafts for the rows of an engine, and what became of them.

    drafted, accepted: tokens that were guessed, and those that were right.
    """

    def __init__(self, draft: DraftModel | None = None) -> None:
        self.drafted = self.accepted = 0
        self.draft = draft
        self._cost = StepCost()
        self._earlier = Suffixes([])  # outputs of texts that have ended
        # How likely a guess is right, by its source
        self._rates = [*(min(0.2 + 0.1 * n, 0.8) for n in range(LONGEST_MATCH + 1)), 0.5, 0.99]
        # Rows without a guess since the last one: from the text, and from the draft model
        self._idle = [0, 0]

    def guess(self, texts: Sequence[Text], *, tokens: int, rows: int, most: int) -> None:
        """Set the `drafts` of texts to guesses of their next tokens, and `source` for `judge`.

        tokens, rows: those that the step has already. most: the most tokens of a step. Raises what
        the draft model raises.
        """
        asked: list[tuple[Text, Wanted]] = []
        for text in texts:
            text.drafts = []
            room = min(text.longest - len(text.tokens), most - tokens, MOST)
            if not self.pays or room < 1:
                continue
            forced, (match, repeated) = text.forced(), self._repeated(text, room)
            if forced:
                sources = [Source(FORCED, min(room, len(forced)))]
            else:
                sources = self._sources(text, match, rows, room)
            n = self._choose(text, sources, tokens, rows)
            if text.source == FORCED:
                text.drafts = forced[:n]
            elif text.source == MODEL:
                asked.append((text, Wanted(text, text.tokens, n, text.guesser())))
            else:
                text.drafts = repeated[:n]
            tokens += n
        if asked:
            assert self.draft is not None
            # Texts that grow must not wait until the draft model has read the prompt of another
            room = self.draft.chunk if rows == 1 else BESIDE
            drafts = self.draft.drafts([wanted for _, wanted in asked], room)
            for (text, _), found in zip(asked, drafts):
                text.drafts = found

    def _repeated(self, text: Text, most: int) -> tuple[int, list[int]]:
        """The length of the longest end of a text that occurred before, and what followed there.

        The length is at most LONGEST_MATCH; a place in the text itself comes first.
        """
        if text.suffixes is None:
            text.suffixes = Suffixes(text.tokens)
        match, at = text.suffixes.repeated()
        where = text.suffixes.tokens
        text.place = self._earlier.follow(text.tokens, text.place)
        if match < min(text.place.length, LONGEST_MATCH):
            match, where, at = text.place.length, self._earlier.tokens, text.place.behind()
        followed = takewhile(lambda token: token != BREAK, where[at : at + most])
        return min(match, LONGEST_MATCH), list(followed)

    def _sources(self, text: Text, match: int, rows: int, most: int) -> list[Source]:
        """Where guesses of a text may come from.

        match: the length of its longest end that occurred before. rows: of the step. most: the most
        guesses.
        """
        found = []
        if match:
            found.append(Source(match, most))
        if self.draft is not None:
            unread = self.draft.unread(text, text.tokens)
            if n := min(most, self.draft.most(text.tokens, unread)):
                fixed, each = self.draft.cost.line
                # Reading the prompt is spread over the tokens that are likely to follow
                follow = min(text.longest - len(text.tokens), TYPICAL)
                reading = each * (len(unread) - 1) / follow
                first = fixed + each * len(unread)
                found.append(Source(MODEL, n, fixed / rows + each + reading, first))
        return found

    def _choose(self, text: Text, sources: Sequence[Source], tokens: int, rows: int) -> int:
        """Set the `source` of a text; returns how many tokens to guess.

        tokens, rows: those that the step has already.
        """
        text.source, n, fastest = 0, 0, 0.0
        for one in sources:
            rate = self._rates[one.source]
            many, speed = worth(rate, self._cost, tokens, rows, one.most, one.guess)
            if many and (not n or speed > fastest):
                text.source, n, fastest = one.source, many, speed
        fixed, each = self._cost.line
        step = fixed + each * tokens
        for one in sources:
            kind = one.source == MODEL
            self._idle[kind] += 1
            if not n and self._idle[kind] * step >= RETRY * max(step, one.first * rows):
                text.source, n = one.source, 1
        if n:
            self._idle[text.source == MODEL] = 0
        return n

    def judge(self, source: int, drafted: int, accepted: int) -> None:
        """Count the guesses of one row in a step."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        for hit in range(min(accepted + 1, drafted)):  # guesses behind a wrong one say nothing
            self._rates[source] += 0.1 * ((hit < accepted) - self._rates[source])

    def observe(self, tokens: int, seconds: float) -> None:
        """Count a step of decoding rows."""
        self._cost.observe(tokens, seconds)

    def forget(self, text: Text) -> None:
        """Free what is kept for a text that has ended, and keep its output for later texts."""
        if self.draft is not None:
            self.draft.forget(text)
        if self.pays:
            if len(self._earlier.tokens) > MOST_EARLIER:
                self._earlier = Suffixes([])
            for token in (*text.output, BREAK):
                self._earlier.add(token)

    def reset(self) -> None:
        """Drop what may be half-changed after an error: what is kept of texts, and draft rows."""
        self._earlier = Suffixes([])
        if self.draft is not None:
            self.draft.reset()

    @property
    def pays(self) -> bool:
        """Whether steps take so long that looking for guesses is nothing beside them."""
        fixed, each = self._cost.line
        return fixed + each > SHORTEST_STEP

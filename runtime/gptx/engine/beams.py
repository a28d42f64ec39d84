"""The work of a beam search: the likeliest texts behind a prompt, of several that grow together.

The search is transformers' (GenerationMixin._beam_search, version 4.57), step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptx.engine.allowed import Allowed
from gptx.engine.control import Control
from gptx.engine.request import Row
from gptx.generation.filters import not_numbers, top_k
from gptx.generation.logprobs import Logprobs
from gptx.generation.options import Options
from gptx.generation.row_plan import FinishReason, RowPlan
from gptx.generation.sampling import Sampler, nothing_left
from gptx.generation.transcript import Transcript
from gptx.softmax import exp, log, log_softmax
from gptx.text.prefix import common_length


@dataclass
class Beam:
    """A text that grows, or has ended.

    score: the sum of its tokens' log-probabilities. row: what the model reads.
    """

    transcript: Transcript
    sampler: Sampler  # for its processors and its tokens; it samples nothing
    score: np.float32
    row: Row


class Beams:
    """Several texts that grow together; a Work of the engine (request.py).

    The arguments are those of Generate (generate.py). `transcript` is filled when the search has
    ended; `transcripts` has the best texts, best first, num_return_sequences of them.
    """

    def __init__(
        self,
        ids: Sequence[int],
        plan: RowPlan,
        sampler: Sampler,
        transcript: Transcript,
        *,
        options: Options,
        allowed: Allowed,
        control: Control,
        n_ctx: int,
    ) -> None:
        self.rows = [Row([], 0) for _ in range(options.num_beams)]
        self.rows[0].tokens, self.rows[0].wanted_from = list(ids), len(ids) - 1
        self.longest: int = min(len(ids) + plan.limit - 1, n_ctx)
        self.generated = 0
        self._finish: FinishReason | None = None
        self.transcript = transcript
        self.transcripts: list[Transcript] = [transcript]
        self._plan, self._options, self._allowed, self._control = plan, options, allowed, control
        self._running = [Beam(transcript, sampler, np.float32(0), self.rows[0])]
        self._ended: list[tuple[float, Beam]] = []  # with the score that counts, best first
        self._times: list[tuple[float, float]] = []  # of each step, for Transcript.add_time
        # transformers keeps so many continuations that enough of them do not end
        self._kept = max(2, 1 + len(plan.end_tokens)) * options.num_beams

    @property
    def finish(self) -> FinishReason | None:
        """Why the search has ended; None: it goes on. If others end it, the best texts count."""
        return self._finish

    @finish.setter
    def finish(self, reason: FinishReason | None) -> None:
        if reason is not None and self._finish is None:
            for beam in self._running:
                beam.transcript.finish = reason
            if self.generated:
                self._keep_ended(self._running)
            self._end()
        self._finish = self._finish or reason

    def take(self, logits: Sequence[np.ndarray], *, now: float, seconds: float) -> None:
        """Give each of the best texts a token, by the logits (1, V) behind each."""
        reading = [id(row) for row in self.rows if row.tokens]
        behind = {row: one[-1] for row, one in zip(reading, logits)}
        following = self._continuations([behind[id(beam.row)] for beam in self._running])
        self.generated += 1
        self._times.append((now - self.transcript.began, seconds))
        self._keep_ended(following[: self._options.num_beams])
        going = [beam for beam in following if beam.transcript.finish is None]
        self._running = going[: self._options.num_beams]
        if self._is_over():
            self._end()
        else:
            self._give_rows()

    def _continuations(self, logits: Sequence[np.ndarray]) -> list[Beam]:
        """The likeliest texts with one more token, best first. Some of them end with it.

        logits: (V,) behind each text that grows.
        """
        scores = [self._scores(beam, one) for beam, one in zip(self._running, logits)]
        every = np.concatenate(scores)
        if np.isnan(every).any():
            raise not_numbers()
        best = top_k(every, min(self._kept, len(every)))
        best = best[np.lexsort((best, -every[best]))][: self._kept]
        found = []
        for index in best[~np.isneginf(every[best])].tolist():
            parent, token = divmod(index, len(scores[0]))
            beam, score = self._running[parent], np.float32(every[index])
            found.append(self._with_token(beam, token, score, logits[parent]))
        if not found:
            raise nothing_left()
        return found

    def _scores(self, beam: Beam, logits: np.ndarray) -> np.ndarray:
        """The scores of the text with each token behind it, float32 (width,), from logits (V,)."""
        logprobs = log_softmax(logits).astype(np.float32)
        allowed = self._allowed.select(logprobs, beam.sampler.tokens)
        return beam.sampler.process(allowed) + beam.score

    def _with_token(self, beam: Beam, token: int, score: np.float32, logits: np.ndarray) -> Beam:
        """The text with one more token. logits: (V,) in front of it."""
        longer = Beam(beam.transcript.copy(), beam.sampler.copy(), score, beam.row)
        longer.sampler.append(token)
        longer.transcript.push(token, self._plan.finish(token, self.generated + 1))
        if self._control.logprobs:
            longer.transcript.add_logprobs(Logprobs(logits, self._control.top_logprobs), token)
        return longer

    def _keep_ended(self, best: Sequence[Beam]) -> None:
        """Add those of the best texts that have just ended to the ended ones."""
        if not self._stops_full():
            divisor = np.float32(power(self.generated, self._options.length_penalty))
            new = [(float(one.score / divisor), one) for one in best if one.transcript.finish]
            merged = sorted([*self._ended, *new], key=lambda scored: -scored[0])
            self._ended = merged[: self._options.num_beams]

    def _stops_full(self) -> bool:
        return self._options.early_stopping is True and self._full()

    def _full(self) -> bool:
        return len(self._ended) == self._options.num_beams

    def _is_over(self) -> bool:
        """Whether no text that grows can become better than the ended ones."""
        if not self._running or self._stops_full():
            return True
        if not self._full():
            return False
        length, options = self.generated, self._options
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = self._plan.limit
        best = float(self._running[0].score / np.float32(power(length, options.length_penalty)))
        return best <= self._ended[-1][0]

    def _give_rows(self) -> None:
        """Give each text a row: the best one that goes on from a row keeps it."""
        held = {id(row): row.tokens for row in self.rows}
        keepers = {id(beam.row): beam for beam in reversed(self._running)}
        free = iter([row for row in self.rows if id(row) not in keepers])
        for beam in self._running:
            if keepers[id(beam.row)] is not beam:
                beam.row = next(free)
            row, row.tokens = beam.row, beam.sampler.tokens
            row.wanted_from = len(row.tokens) - 1
            row.read = min(row.read, common_length(row.tokens, held[id(row)], row.wanted_from))
        growing = {id(beam.row) for beam in self._running}
        for row in self.rows:
            if id(row) not in growing:
                row.tokens, row.read = [], 0

    def _end(self) -> None:
        """The best texts become the result; if there are too few, the last one several times."""
        n = self._options.num_return_sequences
        for score, beam in self._ended[:n]:
            beam.transcript.score = score
            for since_call, step in self._times[: len(beam.transcript.token_ids)]:
                beam.transcript.add_time(since_call=since_call, step=step)
        best = [beam.transcript for _, beam in self._ended[:n]]
        if best:
            self.transcript.become(best[0])
        self.transcripts = [self.transcript, *best[1:]]
        self.transcripts += self.transcripts[-1:] * (n - len(self.transcripts))
        self._finish = self.transcript.finish


def power(n: int, exponent: float) -> float:
    """n to the power of a number, with the same bits on every CPU. n: 1 or more."""
    return n if exponent == 1 else float(exp(exponent * float(log(n))))

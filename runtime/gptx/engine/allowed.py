"""Which of the model's logits may become the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptx.engine.control import LogitsProcessor
from gptx.errors import UsageError, shown
from gptx.generation.filters import not_numbers
from gptx.generation.row_plan import RowPlan


@dataclass(frozen=True)
class Allowed:
    """The ids that may be sampled: those of the tokenizer, and end tokens of a padded vocabulary.

    vocab_size: ids that the tokenizer knows. padded_ends: the end tokens that it does not know, in
    order. processor: the app's logits_processor.
    """

    vocab_size: int
    padded_ends: list[int]
    processor: LogitsProcessor | None

    @classmethod
    def of_plan(cls, plan: RowPlan, vocab_size: int, processor: LogitsProcessor | None) -> Allowed:
        """vocab_size: ids that the tokenizer knows."""
        padded = sorted(token for token in plan.end_tokens if token >= vocab_size)
        return cls(vocab_size, padded, processor)

    @property
    def width(self) -> int:
        """The number of logits that a sampler gets: up to the last id that may be sampled."""
        return self.padded_ends[-1] + 1 if self.padded_ends else self.vocab_size

    def select(self, logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """The logits (width,) of ids that may be sampled; padded ids are left out or -inf.

        logits: (V,). tokens: the prompt and the text so far, for the app's processor.

        NaN and infinity are no logits; -infinity is one, and forbids a token. With a processor,
        raises ArtifactError if the model gave what is no logit, UsageError if the processor did.
        """
        if self.processor is not None:
            logits = _processed(self.processor, tokens, logits.astype(np.float32))
        if not self.padded_ends:
            return logits[: self.vocab_size]
        allowed = np.full(self.width, -np.inf, logits.dtype)
        allowed[: self.vocab_size] = logits[: self.vocab_size]
        # The padding of a draft model may be shorter
        ends = [end for end in self.padded_ends if end < len(logits)]
        allowed[ends] = logits[ends]
        return allowed


def _processed(processor: LogitsProcessor, tokens: Sequence[int], logits: np.ndarray) -> np.ndarray:
    if not logits.max() < np.inf:  # also NaN
        raise not_numbers()
    given = processor(list(tokens), logits)
    if given is None:
        given = logits
    if not isinstance(given, np.ndarray) or given.shape != logits.shape:
        raise UsageError(
            f"logits_processor returned {shown(given)}, expected None or an array of"
            f" {len(logits):,} logits"
        )
    given = given.astype(np.float32)
    if not given.max() < np.inf:  # also NaN
        raise UsageError(
            "logits_processor gave NaN or infinity: to force a token, set all others to -infinity"
        )
    return given

"""DRY ("don't repeat yourself"): penalize the token that would go on with a repeated sequence.

If the row ends in n tokens that also stand earlier, the token that follows them there is penalized
by dry_multiplier * dry_base ** (n - dry_allowed_length), if n is at least dry_allowed_length. A
sequence breaker, such as a line break, ends what counts as a sequence. Formula and breakers are
those of llama.cpp (llama_sampler_dry_apply, llama-sampler.cpp), after
https://github.com/oobabooga/text-generation-webui/pull/5677.

Breakers are sequences of token ids here; dry_breakers.py makes them of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from gptx.generation.option_kinds import LARGEST_CHANGE
from gptx.generation.options import Options
from gptx.generation.repeated_tokens import places_behind
from gptx.softmax import exp, log

# llama.cpp's limit of the exponent: the logarithm of the largest float32
LOG_OF_LARGEST = 88.7228391


def dry(options: Options, n_logits: int) -> Callable[[np.ndarray, np.ndarray], None] | None:
    """The logits processor for the options, or None if they do not ask for DRY.

    All of options.dry_sequence_breakers must be token ids.
    """
    if options.dry_multiplier == 0:
        return None
    multiplier = min(options.dry_multiplier, LARGEST_CHANGE)
    base, allowed = options.dry_base, options.dry_allowed_length
    breakers = Breakers(word for word in options.dry_sequence_breakers if not isinstance(word, str))
    log_base = float(log(base))
    # Longer sequences are penalized as one of this length is.
    longest = allowed + int(LOG_OF_LARGEST / log_base) if base > 1 else allowed

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        limit = min(breakers.tokens_since(tokens), longest)
        ids, lengths = repeats(tokens, allowed, limit)
        penalized = (ids < n_logits) & ~breakers.are_among(ids)
        ids, lengths = ids[penalized], lengths[penalized]
        penalties = multiplier * exp((lengths - float(allowed)) * log_base)
        logits[ids] -= np.minimum(penalties, LARGEST_CHANGE)

    return process


def repeats(tokens: np.ndarray, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that would go on with a repeated sequence, and the length of that sequence.

    shortest: the least tokens of a sequence; at least 1. longest: longer ones count as this long.
    """
    ids = lengths = np.empty(0, np.int64)
    for n, places in zip(range(1, longest + 1), places_behind(tokens, tokens)):
        if n == shortest:
            ids = np.unique(tokens[places])
            lengths = np.full(len(ids), n)
        elif n > shortest:
            lengths[np.searchsorted(ids, tokens[places])] = n
    return ids, lengths


class Breakers:
    """Sequence breakers, prepared so that a row is searched quickly.

    words: sequences of token ids, none empty.
    """

    def __init__(self, words: Iterable[tuple[int, ...]]) -> None:
        words = set(words)
        single = [word[0] for word in words if len(word) == 1]
        self._longer = [np.array(word, np.int64) for word in words if len(word) > 1]
        # For each id, whether it is a breaker. Ids above the last entry have its value, False.
        self._is_breaker = np.zeros(max(single, default=-1) + 2, np.bool_)
        self._is_breaker[single] = True

    def are_among(self, ids: np.ndarray) -> np.ndarray:
        """For each of the ids, whether it alone is a breaker."""
        return np.take(self._is_breaker, ids, mode="clip")

    def tokens_since(self, tokens: np.ndarray) -> int:
        """The number of tokens behind the last breaker in a row; all of them without a breaker.

        As in llama.cpp, the last breaker is the one that begins last. If several begin there, it is
        the longest.
        """
        begin, end = -1, 0
        at = np.flatnonzero(self.are_among(tokens))
        if len(at):
            begin, end = int(at[-1]), int(at[-1]) + 1
        for word in self._longer:
            at = np.arange(max(begin, 0), len(tokens) - len(word) + 1)
            for index, token in enumerate(word):
                at = at[tokens[at + index] == token]
            if len(at):
                begin, end = max((begin, end), (int(at[-1]), int(at[-1]) + len(word)))
        return len(tokens) - end

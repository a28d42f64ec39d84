"""A compiled grammar, and where a text is in it: which tokens may come next.

llguidance's parser in, masks of tokens out. This file knows neither where logits come from nor how
a token is drawn from them.

V: the number of logits. A mask is uint32 (ceil(V / 32),): bit t % 32 of word t // 32 is token t.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np

from gptx.errors import UsageError


class CompiledGrammar:
    """A grammar for one model. `matcher` begins a text.

    library: llguidance's LLMatcher at the start of a text.
    name: what messages call the grammar. notes: what in it has no effect, a sentence each.
    vocab_size, n_tokens: the tokens that have logits, and those that the tokenizer knows.
    end_tokens: the tokens that end a text.
    """

    def __init__(
        self,
        library: Any,
        *,
        name: str,
        notes: list[str],
        vocab_size: int,
        n_tokens: int,
        end_tokens: frozenset[int],
    ) -> None:
        self.name, self.notes = name, notes
        self._library, self._end_tokens = library, end_tokens
        self._vocab_size, self._n_tokens = vocab_size, n_tokens
        # True once one of the matchers reached a limit: they share a cache, so all fail then.
        self.failed = False

    def matcher(self, stop_tokens: Iterable[int] = ()) -> Matcher:
        """A Matcher at the start of a text.

        stop_tokens: tokens that end this text, in addition to the model's own.
        """
        return Matcher(
            self,
            self._library.deep_copy(),
            vocab_size=self._vocab_size,
            n_tokens=self._n_tokens,
            end_tokens=self._end_tokens.union(stop_tokens),
        )


class Matcher:
    """Where one text is in its grammar. It serves one thread at a time.

    A token that ends the text is allowed where the text is complete, and nowhere else.

    Methods raise UsageError if llguidance reaches one of its limits, or if the grammar goes on with
    something that the model has no tokens for. The text cannot go on then.
    """

    def __init__(
        self,
        compiled: CompiledGrammar,
        library: Any,
        *,
        vocab_size: int,
        n_tokens: int,
        end_tokens: frozenset[int],
    ) -> None:
        self._compiled, self._library, self.end_tokens = compiled, library, end_tokens
        self._n_tokens = n_tokens  # llguidance has one more, its own end token
        self._words, library_words = -(-vocab_size // 32), n_tokens // 32 + 1
        self._ends = np.zeros(max(self._words, library_words), np.uint32)
        for token in end_tokens:
            self._ends[token // 32] |= np.uint32(1 << token % 32)
        self._others = ~self._ends
        self._others[n_tokens // 32] &= ~np.uint32(1 << n_tokens % 32)
        self._new_buffer(library_words)
        self._length = 0
        self._ended = False  # by a token of end_tokens

    def _new_buffer(self, words: int) -> None:
        """A place for llguidance's mask, which has a size of its own."""
        self._mask = np.zeros_like(self._ends)
        self._written = self._mask.ctypes.data, 4 * words  # asked for once, as it takes 1 us

    def allowed(self, out: np.ndarray) -> None:
        """Write the mask of the tokens that may come next to `out`, uint32 (ceil(V / 32),).

        It is empty after an end token, and where a text cannot go on and no end token is known.
        """
        out[:] = self._next()

    def apply(self, logits: np.ndarray) -> None:
        """Set the logits of all tokens that may not come next to -inf, in place.

        logits: of the first n tokens, (n,), n up to V.
        """
        others = ~self._next().view(np.uint8)
        forbidden = np.unpackbits(others, count=len(logits), bitorder="little").view(bool)
        np.copyto(logits, -np.inf, where=forbidden)

    def _next(self) -> np.ndarray:
        """The mask of the tokens that may come next, until the next call."""
        if self._ended:
            self._mask[:] = 0
            return self._mask[: self._words]
        self._library.unsafe_compute_mask_ptr(*self._written)
        self._check()
        self._mask &= self._others
        if self._library.is_accepting():
            self._mask |= self._ends
        elif not self._mask.any():
            raise UsageError(
                f"{self._compiled.name}: names a token that ends the text: leave it out, as the "
                "text ends where the grammar does"
            )
        return self._mask[: self._words]

    def accept(self, token: int) -> bool:
        """Append a token to the text. False, without a change, if it may not come next."""
        if self._ended:
            return False
        if token in self.end_tokens:
            taken = self._ended = self.may_end
        else:
            known = 0 <= token < self._n_tokens
            taken = known and self._library.try_consume_tokens([token]) == 1
            self._check()
        self._length += taken
        return taken

    def rollback(self, n: int) -> None:
        """Take back the last n accepted tokens."""
        if not 0 <= n <= self._length:
            raise UsageError(f"rollback got {n}, expected 0 to {self._length}, the tokens accepted")
        self._length -= n
        if n and self._ended:
            self._ended = False
            n -= 1
        self._library.rollback(n)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as the grammar leaves no choice. Often none.

        They are what the model's tokenizer makes of the forced text; its last characters are left
        out if a longer token could begin with them. The mask allows these tokens alone.
        """
        if self._ended:
            return []
        tokens = self._library.compute_ff_tokens()
        self._check()
        return list(takewhile(lambda token: token not in self.end_tokens, tokens))

    @property
    def may_end(self) -> bool:
        """True if the text is complete, so that an end token may come next."""
        return not self._ended and self._library.is_accepting()

    @property
    def is_finished(self) -> bool:
        """True if the text is complete and cannot go on, or an end token was accepted."""
        return self._ended or self._library.is_stopped()

    def copy(self) -> Matcher:
        """A Matcher at the same place, which goes on by itself."""
        other = copy.copy(self)
        other._library = self._library.deep_copy()
        other._new_buffer(self._written[1] // 4)
        return other

    def _check(self) -> None:
        if self._library.is_error():
            self._compiled.failed = True
            if "KeyboardInterrupt" in self._library.get_error():  # Ctrl-C, in a function of Python
                raise KeyboardInterrupt
            raise UsageError(f"{self._compiled.name}: {reason(self._library)}")


def reason(library: Any) -> str:
    """Why llguidance refused or failed, in one line."""
    text = " ".join(library.get_error().split("\n<")[0].split())
    if text.startswith("NoExtension"):
        return "goes on with text that the model has no tokens for"
    return text if len(text) <= 300 else text[:297] + "..."

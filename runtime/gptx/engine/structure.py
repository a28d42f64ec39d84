"""Make a text follow a grammar: which tokens may come next, for each request.

A GrammarCompiler holds what one model's tokens are. It compiles a Grammar once; each request gets a
Matcher of its own, which knows where its text is in the grammar. The parser is llguidance, an
optional package. This file knows neither logits' origin nor sampling.

V: the number of logits. A mask is uint32 (ceil(V / 32),): bit t % 32 of word t // 32 is token t.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np

from gptx.engine.grammar import NAMES, Grammar
from gptx.engine.lark_text import prepare_lark
from gptx.engine.schema_keywords import prepare_schema
from gptx.errors import GptxError, UsageError, warn
from gptx.install import pip_command
from gptx.text.tokenizer import Tokenizer

T = TypeVar("T")

KEPT = 32  # compiled grammars of a model, the last ones used
MOST_SOURCE = 256 * 1024  # characters of a grammar; compiling takes time by their square
# Limits of llguidance, so that compiling ends within seconds. Its own are 500,000 and 2,000: they
# let a grammar compile for a minute, and refuse objects of 500 optional properties.
LIMITS = {"max_grammar_size": 50_000, "max_items_in_row": 20_000, "verbose_errors": False}
# llguidance's compiler calls itself for each rule or $ref that another one names, with up to 20 kB
# of stack. Without room it would end the process.
STACK = 256 << 20
TRIAL = 8  # tokens of a random text with which a new grammar is tried out


class GrammarCompiler:
    """Compiles grammars for one model, and keeps the last ones.

    vocab_size: the number of logits; it may be larger than the tokenizer's vocabulary.
    end_tokens: the tokens that end a text (eos in gptx.json).

    Any number of threads may call it at the same time.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, end_tokens: Iterable[int] = ()
    ) -> None:
        self._tokenizer, self.vocab_size = tokenizer, vocab_size
        self.end_tokens = frozenset(end_tokens)
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()  # of _compiled

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar for this model's tokens; at once if it was compiled before.

        The first grammar takes half a second, in which llguidance reads the vocabulary. Others take
        a few milliseconds, very large ones up to a few seconds.

        Warns (GptxWarning) of parts of the grammar without effect. Raises UsageError if the grammar
        is wrong, has parts that llguidance does not implement, or no text of the model's tokens
        follows it; GptxError without llguidance.
        """
        with self._lock:
            found = self._compiled.get(grammar)
        if found is None or found.failed:
            found = self._compile(grammar)
            for note in found.notes:
                warn(f"{NAMES[grammar.kind]}: {note}")
        with self._lock:
            self._compiled[grammar] = found
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return found

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        name, size = NAMES[grammar.kind], len(grammar.source)
        if size > MOST_SOURCE:
            raise UsageError(f"{name}: has {size:,} characters, expected up to {MOST_SOURCE:,}")
        library, vocabulary = _llguidance(), self.vocabulary
        limits = library.LLParserLimits(**LIMITS)
        try:
            text, notes = _for_library(grammar)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error

        def work() -> CompiledGrammar:
            matcher = library.LLMatcher(vocabulary, text, log_level=0, limits=limits)
            if matcher.is_error():
                raise UsageError(f"{name}: {_reason(matcher)}")
            compiled = CompiledGrammar(name, matcher, notes, self)
            _try_out(compiled.matcher())
            return compiled

        return _with_stack(work)

    @cached_property
    def vocabulary(self) -> Any:
        """The model's tokens as llguidance's LLTokenizer."""
        library = _llguidance()
        return library.LLTokenizer(library.TokenizerWrapper(_Tokens(self._tokenizer)))


class CompiledGrammar:
    """A grammar for one model. `matcher` begins a text.

    name: what messages call the grammar. notes: what in it has no effect, a sentence each.
    """

    def __init__(
        self, name: str, library: Any, notes: list[str], compiler: GrammarCompiler
    ) -> None:
        self.name, self.notes = name, notes
        self._library, self._compiler = library, compiler
        # True once one of the matchers reached a limit: they share a cache, so all fail then.
        self.failed = False

    def matcher(self, stop_tokens: Iterable[int] = ()) -> Matcher:
        """A Matcher at the start of a text.

        stop_tokens: tokens that end this text, in addition to the model's own.
        """
        compiler = self._compiler
        return Matcher(
            self,
            self._library.deep_copy(),
            end_tokens=compiler.end_tokens.union(stop_tokens),
            vocab_size=compiler.vocab_size,
            n_tokens=compiler.vocabulary.vocab_size - 1,
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
        end_tokens: frozenset[int],
        vocab_size: int,
        n_tokens: int,
    ) -> None:
        self._compiled, self._library, self.end_tokens = compiled, library, end_tokens
        self._n_tokens = n_tokens  # the tokenizer's tokens; llguidance has one more, its own end
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
        bits = np.unpackbits(self._next().view(np.uint8), count=len(logits), bitorder="little")
        np.putmask(logits, bits == 0, -np.inf)

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
                f"{self._compiled.name}: asks for a token that ends the text, and then goes on"
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
            raise UsageError(f"{self._compiled.name}: {_reason(self._library)}")


class _Tokens:
    """A tokenizer as llguidance.TokenizerWrapper takes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [*tokenizer.token_bytes(), b""]
        # The last one is llguidance's end token; it stands for all of a Matcher's end tokens.
        self.eos_token_id, self.bos_token_id = len(self.tokens) - 1, None
        self.special_token_ids = [*tokenizer.hidden_ids, self.eos_token_id]
        self._encode = tokenizer.inner_encoder()
        self._ids = {text: token for token, text in enumerate(self.tokens) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text within a text, in the tokenizer's way if they give the same bytes.

        A normalizer may change the text; then each token is the longest one that fits.
        """
        ids = self._encode(text.decode())
        if b"".join(self.tokens[token] for token in ids) == text:
            return ids
        ids = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((size for size in sizes if text[:size] in self._ids), None)
            if size is None:  # no token begins with this byte
                break
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


def _llguidance() -> Any:
    """The package llguidance. Raises GptxError if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise GptxError(
            "structured output needs the package llguidance, which is not installed: "
            + pip_command("structured")
        ) from error
    return llguidance


def _for_library(grammar: Grammar) -> tuple[str, list[str]]:
    """The grammar in llguidance's JSON, and its notes. Raises UsageError."""
    if grammar.kind == "regex":
        return _llguidance().LLMatcher.grammar_from_regex(grammar.source), []
    if grammar.kind == "lark":
        text, notes = prepare_lark(grammar.source)
        return json.dumps({"grammars": [{"lark_grammar": text}]}), notes
    schema, notes = prepare_schema(json.loads(grammar.source))
    return json.dumps({"grammars": [{"json_schema": schema}]}), notes


def _reason(library: Any) -> str:
    """Why llguidance refused or failed, in one line."""
    reason = " ".join(library.get_error().split("\n<")[0].split())
    if reason.startswith("NoExtension"):
        return "goes on with text that the model has no tokens for"
    return reason if len(reason) <= 300 else reason[:297] + "..."


def _with_stack(work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread with a stack of STACK bytes."""
    with _STACK_LOCK:  # the size is a setting of the process
        before = threading.stack_size(STACK)
        try:
            pool = ThreadPoolExecutor(1)
            result = pool.submit(work)
        finally:
            threading.stack_size(before)
    with pool:
        return result.result()


_STACK_LOCK = threading.Lock()


def _try_out(matcher: Matcher) -> None:
    """Follow a grammar for a few tokens. Raises UsageError if llguidance reaches a limit there."""
    for _ in range(TRIAL):
        mask = matcher._next()
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        if matcher.is_finished or not matcher.accept(int(allowed[len(allowed) // 2])):
            return

"""Structured output: compile a grammar for the tokens of a model, once for all requests.

A Grammar in, a CompiledGrammar out. Each request then gets a Matcher of its own (matcher.py), which
knows the tokens that may come next. The parser is llguidance, an optional package.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any

import numpy as np

from gptx.engine.big_stack import BigStack
from gptx.engine.grammar import NAMES, Grammar
from gptx.engine.grammar_tokens import GrammarTokens
from gptx.engine.lark_text import prepare_lark
from gptx.engine.matcher import CompiledGrammar, reason
from gptx.engine.schema_keywords import prepare_schema
from gptx.errors import GptxError, UsageError, warn
from gptx.install import pip_command
from gptx.system.fork import after_fork
from gptx.system.inside_library import inside_library
from gptx.text.tokenizer import Tokenizer

KEPT = 32  # compiled grammars of a model, the last ones used
TRIAL = 8  # tokens of a text with which a new grammar is tried out

# Limits, so that nearly every grammar compiles within seconds or is refused
MOST_SOURCE = {"json_schema": 256 * 1024, "regex": 64 * 1024, "lark": 64 * 1024}  # characters
# llguidance's own limits are 500,000 and 2,000: the first lets a schema compile for a minute, the
# second refuses objects with 500 optional properties.
LIMITS = {"max_grammar_size": 50_000, "max_items_in_row": 10_000, "verbose_errors": False}
MOST_SECONDS = 20  # llguidance cannot be stopped: it then goes on in its thread
# llguidance's compiler calls itself for each rule or $ref that another one names, with up to 20 kB
# of stack. Without room it would end the process.
_BIG_STACK = BigStack(256 << 20, "gptx-grammar")


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
        self._begun: dict[Grammar, Future[CompiledGrammar]] = {}  # by `begin`, and not done yet
        self._lock = threading.Lock()  # of both
        after_fork(self._after_fork)

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
            warn_of_notes(found)
        return self._keep(grammar, found)

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> CompiledGrammar:
        with self._lock:
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return compiled

    def begin(self, grammar: Grammar) -> Future[CompiledGrammar] | None:
        """Compile a grammar in another thread, without warnings; None if that was done before.

        Calls for one grammar at the same time share the work. Raises what `compile` raises.
        """
        with self._lock:
            compiled, begun = self._compiled.get(grammar), self._begun.get(grammar)
            if compiled is not None and not compiled.failed:
                return None
            if begun is None or begun.done():
                begun = self._begun[grammar] = _BIG_STACK.run(partial(self._begun_one, grammar))
        return begun

    def _begun_one(self, grammar: Grammar) -> CompiledGrammar:
        try:
            return self._keep(grammar, self._compile(grammar))
        finally:
            with self._lock:
                self._begun.pop(grammar, None)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        name, size, most = NAMES[grammar.kind], len(grammar.source), MOST_SOURCE[grammar.kind]
        if size > most:
            raise UsageError(f"{name}: has {size:,} characters, expected up to {most:,}")
        library, vocabulary = _llguidance(), self.vocabulary
        limits = library.LLParserLimits(**LIMITS)
        try:
            text, notes = _for_library(grammar)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error

        def work() -> CompiledGrammar:
            with inside_library:
                matcher = library.LLMatcher(vocabulary, text, log_level=0, limits=limits)
                if matcher.is_error():
                    raise UsageError(f"{name}: {reason(matcher)}")
                compiled = CompiledGrammar(
                    matcher,
                    name=name,
                    notes=notes,
                    vocab_size=self.vocab_size,
                    n_tokens=vocabulary.vocab_size - 1,
                    end_tokens=self.end_tokens,
                )
                _try_out(compiled, self.vocab_size)
            return compiled

        try:
            return _BIG_STACK.run(work).result(MOST_SECONDS)
        except TimeoutError as error:
            raise UsageError(f"{name}: takes more than {MOST_SECONDS} s to compile") from error
        except UsageError as error:
            raise UsageError("; ".join([str(error), *notes])) from error

    def _after_fork(self) -> None:
        """In a forked child: it lacks the threads that were compiling."""
        self._lock, self._begun = threading.Lock(), {}

    @cached_property
    def vocabulary(self) -> Any:
        """The model's tokens as llguidance's LLTokenizer."""
        library = _llguidance()
        with inside_library:
            return library.LLTokenizer(library.TokenizerWrapper(GrammarTokens(self._tokenizer)))


def warn_of_notes(compiled: CompiledGrammar) -> None:
    """Warn (GptxWarning) of parts of a grammar that have no effect."""
    for note in compiled.notes:
        warn(f"{compiled.name}: {note}")


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


def _try_out(compiled: CompiledGrammar, vocab_size: int) -> None:
    """Follow a grammar for a few tokens.

    Raises UsageError if llguidance reaches a limit there, or if no token may come.
    """
    matcher = compiled.matcher()
    for taken in range(TRIAL):
        logits = np.zeros(vocab_size, np.float32)
        matcher.apply(logits)
        allowed = np.flatnonzero(logits == 0)
        if not (taken or allowed.size):
            raise UsageError(
                f"{compiled.name}: only the empty text follows it, and no token of this model ends"
                " a text"
            )
        if matcher.is_finished or not matcher.accept(int(allowed[len(allowed) // 2])):
            return

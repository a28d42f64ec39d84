"""How likely a model finds a text: the log-probability of each token after those in front of it.

A text that is longer than the context is read in windows that overlap, so that each token is judged
by many tokens in front of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptx.arguments import count
from gptx.engine.loaded_model import LoadedModel
from gptx.engine.read import Logprobs
from gptx.engine.run import run
from gptx.errors import PromptError, warn
from gptx.generation.prompt import Prompt
from gptx.softmax import exp
from gptx.text.detokenizer import Detokenizer

# Scoring warns if a text has more windows than this, and if each token is read this many times.
MANY_WINDOWS, MANY_TIMES = 100, 10


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text, token by token.

    Fields:

    - token_ids: the tokens of the text, with those that the tokenizer adds (bos).
    - pieces: the text of each token; joined, they are the whole text. Special tokens have "". A
      character of several tokens stands in the piece of the last one. None if the artifact has no
      tokenizer.
    - logprobs: log P(token | all tokens in front of it), in nats. The first token has None, because
      no token stands in front of it.
    - total: the sum of logprobs.
    - perplexity: exp(-total / number of scored tokens).
    - bits_per_byte: -total / ln(2) / UTF-8 bytes of the scored tokens. It can be compared between
      models with different tokenizers; perplexity cannot. None without a tokenizer, or if there are
      no bytes.
    - overlap: the number of tokens that each window shares with the window before; 0 if the text
      fits into the context.
    """

    token_ids: list[int]
    pieces: list[str] | None
    logprobs: list[float | None]
    total: float
    perplexity: float
    bits_per_byte: float | None
    overlap: int


def score(
    model: LoadedModel,
    text: Prompt,
    *,
    overlap: int | None = None,
    cancel: threading.Event | None = None,
) -> Score:
    """Score a text; Model.score documents the arguments."""
    n_ctx = model.n_ctx
    if overlap is not None:
        overlap = count("overlap", overlap, f"1 to {n_ctx}, the model's context", n_ctx)
    if isinstance(text, str) and not text:
        raise PromptError("the text is empty: give a text to score")
    ids = model.encode(text)
    if len(ids) < 2:
        raise PromptError(
            f"the text has {len(ids)} token{'s' * (len(ids) != 1)}, and scoring needs at least 2:"
            " give a longer text"
        )
    repeated = overlap or max(1, n_ctx // 2)
    _warn_of_many(sum(1 for _ in windows(len(ids), n_ctx, repeated)), len(ids), n_ctx, repeated)
    values: list[float] = []
    for start, first, end in windows(len(ids), n_ctx, repeated):
        work = Logprobs(ids[start:end], first - start)
        run(model.engine, [work], cancel)
        values += work.values
    pieces = _pieces(model, ids)
    total = math.fsum(values)
    return Score(
        token_ids=ids,
        pieces=pieces,
        logprobs=[None, *values],
        total=total,
        perplexity=float(exp(min(-total / len(values), 700.0))),  # exp(710) overflows
        bits_per_byte=_bits_per_byte(text, pieces, total),
        overlap=repeated if len(ids) > n_ctx + 1 else 0,
    )


def _warn_of_many(n_windows: int, length: int, n_ctx: int, overlap: int) -> None:
    """Warn if the overlap makes scoring many times slower than a smaller one would."""
    times = n_windows * n_ctx // length
    if n_windows > MANY_WINDOWS and times >= MANY_TIMES:
        warn(
            f"an overlap of {overlap} tokens reads this text {times:,} times, in {n_windows:,}"
            f" windows of {n_ctx:,} tokens: a smaller overlap is faster"
        )


def windows(length: int, n_ctx: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Windows (start, first, end) of a text of `length` tokens.

    A window begins at token `start` and scores tokens `first` to `end` - 1. Together, the windows
    score every token except token 0 once. A window has at most n_ctx + 1 tokens, as its last token
    is not fed. A later window begins `overlap` tokens in front of the first token that it scores.
    """
    start, first = 0, 1
    while first < length:
        end = min(start + n_ctx + 1, length)  # the last token is not fed
        yield start, first, end
        start, first = end - overlap, end


def _pieces(model: LoadedModel, ids: Sequence[int]) -> list[str] | None:
    if model.tokenizer is None:
        return None
    detokenizer = Detokenizer(model.tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    pieces[-1] += detokenizer.flush()
    return pieces


def _bits_per_byte(text: Prompt, pieces: list[str] | None, total: float) -> float | None:
    """Bits per byte of the scored tokens: the bytes of the first token do not count."""
    if pieces is None:
        return None
    whole = text if isinstance(text, str) else "".join(pieces)
    n_bytes = len(whole.encode()) - len(pieces[0].encode())
    return -total / math.log(2) / n_bytes if n_bytes > 0 else None

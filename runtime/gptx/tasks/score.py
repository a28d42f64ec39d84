"""How likely a model finds a text: token ids in, the log-probability of each token after those before it out.

A text longer than the context is read in windows that overlap, so that no token but the first ones is judged without
a good piece of what stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptx.arguments import count
from gptx.errors import PromptError, warn
from gptx.generation.loaded_model import LoadedModel
from gptx.generation.prompt import Prompt
from gptx.generation.session import Session
from gptx.parity.metrics import CHUNK
from gptx.softmax import logsumexp
from gptx.text.detokenizer import Detokenizer

MANY_WINDOWS, MANY_TIMES = 100, 10  # from here on a text takes so long that the caller is told


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text, token by token.

    pieces: the text of each token; joined, they are the whole text. A special token has "", and so has a token that
    holds only a part of a character (the character stands in the piece of the token that completes it).

    logprobs: log P of each token after all tokens before it, in nats. The first token has None, as nothing stands
    before it. If the tokenizer adds a bos token, that is the first token.
    """

    token_ids: list[int]
    pieces: list[str] | None  # None where the artifact has no tokenizer
    logprobs: list[float | None]  # nats
    total: float  # their sum
    perplexity: float  # exp(-total / tokens that were scored)
    bits_per_byte: float | None  # of UTF-8; comparable between tokenizers, as perplexity is not
    overlap: int  # tokens that each further window repeats; 0: the text fits into the context


def score(model: LoadedModel, text: Prompt, *, overlap: int | None = None) -> Score:
    """As Model.score says."""
    n_ctx = model.n_ctx
    if overlap is not None:
        overlap = count("overlap", overlap, f"1 to {n_ctx}, the model's context", n_ctx)
    if isinstance(text, str) and not text:
        raise PromptError("the text is empty: give a text to score")
    ids = model.encode(text)
    if len(ids) < 2:
        raise PromptError(
            "one token alone has nothing before it to be judged by: give a longer text"
        )
    repeated = overlap or max(1, n_ctx // 2)
    _warn_of_many(sum(1 for _ in windows(len(ids), n_ctx, repeated)), len(ids), n_ctx, repeated)
    with model.session(1, size=min(len(ids), n_ctx)) as session:
        values = [
            value
            for window in windows(len(ids), n_ctx, repeated)
            for value in _window(session, ids, *window)
        ]
    pieces = _pieces(model, ids)
    total = math.fsum(values)
    return Score(
        token_ids=ids,
        pieces=pieces,
        logprobs=[None, *values],
        total=total,
        perplexity=math.exp(min(-total / len(values), 700.0)),  # more is no float
        bits_per_byte=_bits_per_byte(text, pieces, total),
        overlap=repeated if len(ids) > n_ctx + 1 else 0,
    )


def _warn_of_many(n_windows: int, length: int, n_ctx: int, overlap: int) -> None:
    times = n_windows * n_ctx // length
    if n_windows > MANY_WINDOWS and times >= MANY_TIMES:
        warn(
            f"an overlap of {overlap} tokens reads this text {times:,} times, in {n_windows:,} windows of {n_ctx:,} tokens:"
            " a smaller one is quicker"
        )


def windows(length: int, n_ctx: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): the window begins at `start`, and tokens first to end are scored in it, each once. A window is
    fed at most n_ctx tokens; each further one begins `overlap` tokens before the first that it scores."""
    start, first = 0, 1
    while first < length:
        end = min(start + n_ctx + 1, length)  # the last one is not fed
        yield start, first, end
        start, first = end - overlap, end


def _window(session: Session, ids: Sequence[int], start: int, first: int, end: int) -> list[float]:
    session.rewind([0])
    if start < first - 1:
        session.feed([ids[start : first - 1]])  # only read: no logits are computed but the last
    values: list[float] = []
    for at in range(first - 1, end - 1, CHUNK):
        piece = ids[at : min(at + CHUNK, end - 1)]
        logits = session.feed([piece], all_logits=True)[0].astype(np.float64)  # (n, V)
        targets = np.array(ids[at + 1 : at + 1 + len(piece)])
        values += (logits[np.arange(len(piece)), targets] - logsumexp(logits)).tolist()
    return values


def _pieces(model: LoadedModel, ids: Sequence[int]) -> list[str] | None:
    if model.tokenizer is None:
        return None
    detokenizer = Detokenizer(model.tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    pieces[-1] += detokenizer.flush()
    return pieces


def _bits_per_byte(text: Prompt, pieces: list[str] | None, total: float) -> float | None:
    """Of the bytes whose tokens were scored: the first token's are not."""
    if pieces is None:
        return None
    whole = text if isinstance(text, str) else "".join(pieces)
    n_bytes = len(whole.encode()) - len(pieces[0].encode())
    return -total / math.log(2) / n_bytes if n_bytes > 0 else None

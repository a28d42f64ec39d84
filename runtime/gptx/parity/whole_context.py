"""Predictions of the reference at positions of the whole context, and comparison with them.

The proof text is shorter than most contexts. So an artifact also carries windows of tokens at
positions up to the last, with the few highest logits of the reference after each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptx.engine.loaded_model import LoadedModel
from gptx.ort.device import CPU
from gptx.softmax import exp, log, log_softmax, logsumexp

WHOLE = 2048  # a context of at most this many tokens is one window
PIECES, PIECE = 8, 256  # in a longer context: number of windows, spread evenly; tokens of each
TOP = 4  # highest logits that are kept of each position

# (token ids, position of the first) -> logits (length, n_logits), or None if the graph cannot
# begin at that position
LogitsAt = Callable[[list[int], int], np.ndarray | None]


@dataclass(frozen=True)
class Context:
    """The reference's predictions in W windows of P tokens in all, as the artifact stores them."""

    context_tokens: np.ndarray  # int32 (P,), the windows one after the other
    context_windows: np.ndarray  # int32 (W, 2): length, and the position of the first token
    context_ids: np.ndarray  # uint16 or uint32 (P, TOP): the tokens of the highest logits
    context_logits: np.ndarray  # float32 (P, TOP)
    context_logsumexp: np.ndarray  # float32 (P,), over all logits of the position

    def windows(self) -> list[tuple[slice, list[int], int]]:
        """For each window: its slice of the arrays, its token ids, the position of the first."""
        found, at = [], 0
        for length, position in self.context_windows.tolist():
            here = slice(at, at + length)
            found.append((here, self.context_tokens[here].tolist(), position))
            at += length
        return found

    @property
    def last(self) -> int:
        """The last position that a window reaches."""
        return max(int(length + position) for length, position in self.context_windows.tolist()) - 1


def context_windows(n_ctx: int, *, offsets: bool = True) -> list[tuple[int, int]]:
    """(length, position of the first token) of each window in a context of `n_ctx` tokens.

    offsets: True if the graph can begin at positions above 0; else there is a single window, at
    position 0.
    """
    if n_ctx <= WHOLE or not offsets:
        return [(min(n_ctx, WHOLE), 0)]
    return [(PIECE, (n_ctx - PIECE) * piece // (PIECES - 1)) for piece in range(PIECES)]


def record_context(
    tokens: Sequence[int], windows: Sequence[tuple[int, int]], logits_at: LogitsAt
) -> Context:
    """Run the reference in `windows` and keep its highest logits.

    tokens: a text that fills the windows one after the other; it is repeated if it is too short.
    windows: (length, position of the first token) of each. logits_at: runs the reference, which
    must be able to begin at every position.
    """
    ids, kept = [], []
    for length, position in windows:
        window = [tokens[(len(ids) + n) % len(tokens)] for n in range(length)]
        values = logits_at(window, position)
        assert values is not None, "the reference begins at any position"
        ids += window
        kept.append(_highest(values))
    top_ids, top_logits, totals = (np.concatenate(parts) for parts in zip(*kept))
    return Context(
        context_tokens=np.array(ids, np.int32),
        context_windows=np.array(windows, np.int32),
        context_ids=top_ids,
        context_logits=top_logits,
        context_logsumexp=totals,
    )


def _highest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    top = min(TOP, values.shape[1])
    ids = np.argpartition(values, -top, axis=-1)[:, -top:]
    id_type = np.uint16 if values.shape[1] <= 1 << 16 else np.uint32
    totals = logsumexp(values).astype(np.float32)
    return ids.astype(id_type), np.take_along_axis(values, ids, -1).astype(np.float32), totals


def compare_context(
    context: Context, logits_at: LogitsAt, progress: Callable[[int], object] = lambda n: None
) -> dict[str, float]:
    """Figures over the windows at which the graph can begin; {} if there is none.

    context_max_abs: largest difference of a kept logit. context_kl, context_kl_max: mean and
    largest KL divergence in nats, where all tokens that are not kept count as one (so it is never
    more than the true divergence). progress: called with the tokens that were compared.
    """
    gaps, kl = [], []
    for here, window, position in context.windows():
        values = logits_at(window, position)
        progress(len(window))
        if values is None:
            continue
        values = values.astype(np.float64)
        ids, top = (
            context.context_ids[here].astype(np.int64),
            context.context_logits[here].astype(np.float64),
        )
        gaps.append(np.abs(top - np.take_along_axis(values, ids, -1)).max(initial=0.0))
        log_p = top - context.context_logsumexp[here].astype(np.float64)[:, None]
        kl.append(kl_of_top(log_p, np.take_along_axis(log_softmax(values), ids, -1)))
    if not kl:
        return {}
    every = np.concatenate(kl)
    return {
        "context_max_abs": float(np.max(gaps)),  # NaN stays NaN
        "context_kl": max(float(every.mean()), 0.0),
        "context_kl_max": max(float(every.max()), 0.0),
    }


def kl_of_top(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL divergence (P,) in nats, of which T log-probabilities (P, T) are known.

    All other tokens count as one, with the probability that is left (at least 1e-12).
    """
    rest_p, rest_q = (np.clip(1 - exp(x).sum(-1), 1e-12, None) for x in (log_p, log_q))
    return (exp(log_p) * (log_p - log_q)).sum(-1) + rest_p * log(rest_p / rest_q)


def reaches_offsets(model: LoadedModel) -> bool:
    """True if the graph can begin at a position above 0 with an empty cache."""
    form = model.manifest.cache
    if form == "growing":
        return model.takes_positions
    # CUDA's graph has no attention mask, so it would see the unused cache before the position.
    return form == "shared" and model.provider == CPU


def logits_at(model: LoadedModel, window: list[int], position: int) -> np.ndarray | None:
    """Logits (length, n_logits) float32 after every token of a window.

    position: that of the window's first token. Returns None if the graph cannot begin there. The
    last token of a window at position 0 is run as a decode step, as in generation.
    """
    if position and not reaches_offsets(model):
        return None
    with model.session(1, size=position + len(window)) as session:
        if position:
            session.begin_at(position)
            return session.feed([window], all_logits=True)[0]
        if len(window) == 1:
            return session.feed([window])
        first = session.feed([window[:-1]], all_logits=True)[0]
        return np.concatenate((first, session.feed([window[-1:]])))

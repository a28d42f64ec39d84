"""The whole context: token ids at positions up to the context's last, with what the reference model predicts after each.

The proof text is shorter than most contexts, so these windows reach the positions that it leaves out. Each position keeps
the reference's few highest logits. In: a way to compute logits at a position. Out: a Context, or figures against one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptx.generation.loaded_model import LoadedModel
from gptx.ort.device import CPU
from gptx.softmax import log_softmax, logsumexp

WHOLE = (
    2048  # a context of so many tokens is one window; of a longer one, windows lie spread over it:
)
PIECES, PIECE = 8, 256
TOP = 4  # logits that are kept of each position

# (token ids, position of the first) -> logits (length, n_logits); None: the graph cannot begin at that position
LogitsAt = Callable[[list[int], int], np.ndarray | None]


@dataclass(frozen=True)
class Context:
    context_tokens: np.ndarray  # int32 (P,), the windows one after the other
    context_windows: (
        np.ndarray
    )  # int32 (W, 2): length of each, and the position that its first token has
    context_ids: np.ndarray  # uint16 or uint32 (P, TOP): the tokens of the highest logits
    context_logits: np.ndarray  # float32 (P, TOP)
    context_logsumexp: np.ndarray  # float32 (P,), of all logits

    def windows(self) -> list[tuple[slice, list[int], int]]:
        """Of each window: where it lies in the arrays, its token ids, and the position of the first."""
        found, at = [], 0
        for length, position in self.context_windows.tolist():
            here = slice(at, at + length)
            found.append((here, self.context_tokens[here].tolist(), position))
            at += length
        return found

    @property
    def last(self) -> int:
        """The last position that is reached."""
        return max(int(length + position) for length, position in self.context_windows.tolist()) - 1


def context_windows(n_ctx: int, *, offsets: bool = True) -> list[tuple[int, int]]:
    """(length, position of the first token) of each window. offsets: whether the graph can begin beyond position 0."""
    if n_ctx <= WHOLE or not offsets:
        return [(min(n_ctx, WHOLE), 0)]
    return [(PIECE, (n_ctx - PIECE) * piece // (PIECES - 1)) for piece in range(PIECES)]


def record_context(
    tokens: Sequence[int], windows: Sequence[tuple[int, int]], logits_at: LogitsAt
) -> Context:
    """What the reference predicts in `windows`, filled with `tokens` over and over."""
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
    totals = logsumexp(values.astype(np.float64)).astype(np.float32)
    return ids.astype(id_type), np.take_along_axis(values, ids, -1).astype(np.float32), totals


def compare_context(
    context: Context, logits_at: LogitsAt, progress: Callable[[int], object] = lambda n: None
) -> dict[str, float]:
    """Figures over every position that the graph can reach; {} where it reaches none.

    context_max_abs: the largest difference of a kept logit. context_kl, context_kl_max: mean and largest KL, all tokens
    but the kept ones taken as one (so never more than the true KL).
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
    """KL (P,) of the probabilities that are kept (P, T), all others taken as one."""
    rest_p, rest_q = (np.clip(1 - np.exp(x).sum(-1), 1e-12, None) for x in (log_p, log_q))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1) + rest_p * np.log(rest_p / rest_q)


def reaches_offsets(model: LoadedModel) -> bool:
    """Whether the graph can begin at a position beyond 0 with nothing before it that is seen."""
    form = model.manifest.cache
    if form == "growing":
        return model.takes_positions
    return form == "shared" and model.provider == CPU  # CUDA's own graph has no mask


def logits_at(model: LoadedModel, window: list[int], position: int) -> np.ndarray | None:
    """Logits after every token of a window whose first token has this position, (length, n_logits) float32.

    The last token of a window at position 0 is run as a step, as generation runs it.
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

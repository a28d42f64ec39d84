"""Make the Reference of an artifact: the reference model's logits in, its highest ones out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gptx.parity.reference import TOP, Reference
from gptx.softmax import logsumexp


def summarize(
    windows: list[list[int]],
    logits: Callable[[int], np.ndarray],
    greedy: tuple[list[int], list[int]],
    *,
    budget: int,
    per_token: int = 0,
) -> Reference:
    """A Reference of about `budget` bytes, with the first positions of `windows` that fit into it.

    windows: token ids of the proof text. logits: gives window i's logits (length, n_logits)
    float32. greedy: the token ids of a prompt and of its greedy continuation. per_token: bytes
    that the caller will add for each token (its text).
    """
    n_logits = logits(0).shape[1]
    n_full = 2 if 8 * n_logits < budget // 4 else 1
    room = max(
        16, (budget - 4 * n_full * n_logits - 4096) // (_position_bytes(n_logits) + per_token)
    )
    starts: list[tuple[int, int]] = []
    tokens: list[int] = []
    rows: list[tuple[np.ndarray, ...]] = []
    full: list[tuple[int, np.ndarray]] = []
    for index, window in enumerate(windows):
        window = window[: room - len(tokens)]
        if not window:
            break
        values = logits(index)[: len(window)]
        if len(full) < n_full:
            full.append((len(tokens) + len(window) - 1, values[-1]))
        rows.append((*_highest(values), _target_logits(values, window)))
        starts.append((len(tokens), len(window)))
        tokens.extend(window)
    top_ids, top_logits, totals, targets = (np.concatenate(parts) for parts in zip(*rows))
    prompt, continuation = greedy
    return Reference(
        tokens=np.array(tokens, np.int32),
        windows=np.array(starts, np.int32),
        top_ids=top_ids,
        top_logits=top_logits,
        logsumexp=totals,
        target_logits=targets,
        full_positions=np.array([at for at, _ in full], np.int32),
        full_logits=np.stack([values for _, values in full]).astype(np.float32),
        greedy_prompt=np.array(prompt, np.int32),
        greedy_tokens=np.array(continuation, np.int32),
    )


def _id_type(n_logits: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if n_logits <= 1 << 16 else np.uint32


def _position_bytes(n_logits: int) -> int:
    """Bytes of one position: the kept ids and logits, the token, logsumexp, the target logit."""
    return min(TOP, n_logits) * (4 + np.dtype(_id_type(n_logits)).itemsize) + 12


def _highest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and values (P, TOP) of the highest logits, and the logsumexp (P,) of all."""
    n_logits = values.shape[1]
    top = min(TOP, n_logits)
    ids = np.argpartition(values, -top, axis=-1)[:, -top:]
    logits = np.take_along_axis(values, ids, -1).astype(np.float32)
    totals = logsumexp(values).astype(np.float32)
    return ids.astype(_id_type(n_logits)), logits, totals


def _target_logits(values: np.ndarray, window: list[int]) -> np.ndarray:
    """(P,) the logit of the token that follows each position; NaN at the end of the window.

    The logits of a classification head belong to labels. Their target logits have no meaning, and
    the ids are clipped so that the array can be filled at all.
    """
    followed = np.minimum(np.array(window[1:], np.int64), values.shape[1] - 1)
    following = np.take_along_axis(values[:-1], followed[:, None], -1)[:, 0]
    return np.append(following, np.nan).astype(np.float32)

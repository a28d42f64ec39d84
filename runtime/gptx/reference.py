"""gptx_reference.safetensors: what an artifact carries of its reference model, so that it can be compared without it.

tokens          int32 (P,)       the proof text, its windows one after the other
windows         int32 (W, 2)     where each window starts in `tokens`, and its length
top_ids         uint16 or uint32 (P, 64), top_logits float32 (P, 64)   the highest logits of each position
logsumexp       float32 (P,)     of all logits of the position
target_logits   float32 (P,)     of the token that follows; NaN at a window's end
full_positions  int32 (F,), full_logits float32 (F, vocab_size)        a few positions whole
greedy_prompt   int32 (n,), greedy_tokens int32 (m,)                   the reference's greedy continuation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from gptx.compare import Figures, Tally, log_softmax, logsumexp
from gptx.errors import ArtifactError

FILE = "gptx_reference.safetensors"
TOP = 64


@dataclass(frozen=True)
class Reference:
    tokens: np.ndarray
    windows: np.ndarray
    top_ids: np.ndarray
    top_logits: np.ndarray
    logsumexp: np.ndarray
    target_logits: np.ndarray
    full_positions: np.ndarray
    full_logits: np.ndarray
    greedy_prompt: np.ndarray
    greedy_tokens: np.ndarray

    def save(self, folder: Path) -> None:
        # not save_file, whose file only its owner can read
        (folder / FILE).write_bytes(save({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}))

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Raises ArtifactError for a file that is missing, broken or lacks an array."""
        try:
            arrays = load_file(folder / FILE)
            return cls(**arrays)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder / FILE} is missing, and verify compares with it: export again") from error
        except (SafetensorError, TypeError, OSError) as error:
            raise ArtifactError(f"{folder / FILE} cannot be read ({error}): copy the artifact again") from error

    def token_windows(self) -> Iterator[tuple[int, list[int]]]:
        """(start, token ids) of each window."""
        for start, length in self.windows.tolist():
            yield start, self.tokens[start : start + length].tolist()


def summarize(
    windows: list[list[int]],
    logits: Callable[[int], np.ndarray],
    greedy: tuple[list[int], list[int]],
    *,
    budget: int,
) -> Reference:
    """A Reference of at most about `budget` bytes: the first positions of `windows` that fit.

    logits(i) gives window i's logits (length, vocab_size) float32; greedy is (prompt, continuation).
    """
    vocab_size = logits(0).shape[1]
    top = min(TOP, vocab_size)
    id_type = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    per_position = top * (4 + np.dtype(id_type).itemsize) + 12
    n_full = 2 if 8 * vocab_size < budget // 4 else 1
    room = max(16, (budget - 4 * n_full * vocab_size - 4096) // per_position)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "logits", "logsumexp", "targets")}
    starts, tokens, full = [], [], []
    for index, window in enumerate(windows):
        window = window[: room - len(tokens)]
        if not window:
            break
        values = logits(index)[: len(window)]
        if len(full) < n_full:
            full.append((len(tokens) + len(window) - 1, values[-1]))
        ids = np.argpartition(values, -top, axis=-1)[:, -top:]
        rows["ids"].append(ids.astype(id_type))
        rows["logits"].append(np.take_along_axis(values, ids, -1).astype(np.float32))
        rows["logsumexp"].append(logsumexp(values.astype(np.float64)).astype(np.float32))
        # of a classification head, whose logits are of no tokens, these stand for nothing
        followed = np.minimum(np.array(window[1:], np.int64), vocab_size - 1)
        following = np.take_along_axis(values[:-1], followed[:, None], -1)[:, 0]
        rows["targets"].append(np.append(following, np.nan).astype(np.float32))
        starts.append((len(tokens), len(window)))
        tokens.extend(window)
    prompt, continuation = greedy
    return Reference(
        tokens=np.array(tokens, np.int32),
        windows=np.array(starts, np.int32),
        top_ids=np.concatenate(rows["ids"]),
        top_logits=np.concatenate(rows["logits"]),
        logsumexp=np.concatenate(rows["logsumexp"]),
        target_logits=np.concatenate(rows["targets"]),
        full_positions=np.array([at for at, _ in full], np.int32),
        full_logits=np.stack([values for _, values in full]).astype(np.float32),
        greedy_prompt=np.array(prompt, np.int32),
        greedy_tokens=np.array(continuation, np.int32),
    )


def compare(reference: Reference, logits: Callable[[list[int]], np.ndarray], *, classes: bool = False) -> Figures:
    """Figures of a model against what the reference carries.

    Differences are those of the 64 highest logits (and of the full positions); KL takes all other tokens as one bin, so
    it is never more than the true one; top-1 and perplexity are exact. logits(window) -> (length, vocab_size).
    classes: the logits are a classification head's, and there is no perplexity.
    """
    return tally(reference, logits, classes=classes).figures()


def tally(reference: Reference, logits: Callable[[list[int]], np.ndarray], *, classes: bool = False) -> Tally:
    """What compare's figures are made of, position by position."""
    found = Tally()
    full = dict(zip(reference.full_positions.tolist(), reference.full_logits))
    for start, window in reference.token_windows():
        here = slice(start, start + len(window))
        values = logits(window).astype(np.float64)
        _add(found, reference, here, values)
        if classes:
            found.nll_reference.append(np.empty(0))
            found.nll.append(np.empty(0))
        else:
            _add_loss(found, reference, here, values, np.array(window))
        for at, expected in full.items():
            if start <= at < here.stop:
                found.difference(expected.astype(np.float64), values[at - start])
    return found


def _add(tally: Tally, reference: Reference, here: slice, values: np.ndarray) -> None:
    ids = reference.top_ids[here].astype(np.int64)
    top = reference.top_logits[here].astype(np.float64)
    tally.difference(top, np.take_along_axis(values, ids, -1))

    log_p = top - reference.logsumexp[here].astype(np.float64)[:, None]
    log_q = np.take_along_axis(log_softmax(values), ids, -1)
    rest_p, rest_q = (np.clip(1 - np.exp(x).sum(-1), 1e-12, None) for x in (log_p, log_q))
    tally.kl.append((np.exp(log_p) * (log_p - log_q)).sum(-1) + rest_p * np.log(rest_p / rest_q))

    best = top.argmax(-1)
    chosen = values.argmax(-1)
    theirs = np.take_along_axis(ids, best[:, None], -1)[:, 0]
    known = np.where(ids == chosen[:, None], top, -np.inf).max(-1)
    # a choice outside the 64 is at least as far behind as the last of them
    lead = top.max(-1) - np.where(np.isfinite(known), known, top.min(-1))
    tally.choice(chosen == theirs, lead)


def _add_loss(tally: Tally, reference: Reference, here: slice, values: np.ndarray, window: np.ndarray) -> None:
    nll_reference = reference.logsumexp[here] - reference.target_logits[here]
    tally.nll_reference.append(nll_reference[:-1].astype(np.float64))
    rows = np.arange(len(window) - 1)
    tally.nll.append(logsumexp(values)[:-1] - values[rows, window[1:]])

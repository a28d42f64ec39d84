"""gptx_reference.safetensors: what an artifact carries of its reference model, so that it can be compared without it.

tokens          int32 (P,)       the proof text, its windows one after the other
windows         int32 (W, 2)     where each window starts in `tokens`, and its length
top_ids         uint16 or uint32 (P, 64), top_logits float32 (P, 64)   the highest logits of each position
logsumexp       float32 (P,)     of all logits of the position
target_logits   float32 (P,)     of the token that follows; NaN at a window's end
full_positions  int32 (F,), full_logits float32 (F, vocab_size)        a few positions whole
greedy_prompt   int32 (n,), greedy_tokens int32 (m,)                   the reference's greedy continuation
context_*                        windows up to the context's last position: see whole_context.py
words           uint8 (n,)       JSON: what the artifact makes of text, see text_record.py
seal            uint8 (n,)       JSON: hashes of the artifact when it was made, see seal.py

The last three are missing in artifacts of an older gptx.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from gptx.artifact.json_files import parse_json
from gptx.artifact.manifest import REFERENCE as FILE
from gptx.artifact.manifest import Shape
from gptx.errors import ArtifactError
from gptx.parity import text_record
from gptx.parity.metrics import Figures, Tally
from gptx.parity.seal import Seal, is_seal
from gptx.parity.whole_context import Context, kl_of_top
from gptx.softmax import log_softmax, logsumexp

TOP = 64
MOST_POSITIONS = 16_384  # of each kind: a file from a stranger must not keep verify busy for hours
_EXTRA = ("context", "words", "seal")


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
    context: Context | None = None
    words: dict[str, Any] | None = None
    seal: Seal | None = None

    def save(self, folder: Path) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _EXTRA}
        if self.context is not None:
            arrays |= {f.name: getattr(self.context, f.name) for f in fields(self.context)}
        for name, value in (("words", self.words), ("seal", self.seal)):
            if value is not None:
                arrays[name] = np.frombuffer(dump(value), np.uint8)
        # not save_file, whose file only its owner can read
        (folder / FILE).write_bytes(
            save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        )

    @classmethod
    def load(cls, folder: Path, shape: Shape) -> Reference:
        """`shape`: the model's, which the arrays must fit. Raises ArtifactError for a file that is missing or broken, and
        for arrays that cannot be what they stand for."""
        path = folder / FILE
        try:
            arrays = load_file(path)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing, and verify compares with it: export again"
            ) from error
        except (SafetensorError, TypeError, ValueError, KeyError, OSError) as error:
            raise ArtifactError(
                f"{path} cannot be read ({error}): copy the artifact again"
            ) from error
        names = {f.name for f in fields(cls)} - set(_EXTRA)
        of_context = {f.name for f in fields(Context)}
        has_context = bool(of_context & arrays.keys())
        missing = sorted((names | (of_context if has_context else set())) - arrays.keys())
        if missing:
            raise ArtifactError(f"{path} lacks {', '.join(missing)}: export the artifact again")
        context = Context(**{name: arrays[name] for name in of_context}) if has_context else None
        reference = cls(
            **{name: arrays[name] for name in names},
            context=context,
            words=_parse(
                path,
                arrays,
                "words",
                text_record.is_record,
                "record of what the artifact makes of text",
            ),
            seal=_parse(path, arrays, "seal", is_seal, "seal"),
        )
        problems = list(_problems(reference, shape))
        if problems:
            raise ArtifactError(
                f"{path} is not a reference of this model: {'; '.join(problems)}: copy it again"
            )
        return reference

    def token_windows(self) -> Iterator[tuple[int, list[int]]]:
        """(start, token ids) of each window."""
        for start, length in self.windows.tolist():
            yield start, self.tokens[start : start + length].tolist()


def dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parse(
    path: Path, arrays: dict[str, np.ndarray], name: str, is_one: Callable[[Any], bool], what: str
) -> dict[str, Any] | None:
    """The JSON object in an array of bytes; None where there is no such array. Raises ArtifactError."""
    array = arrays.get(name)
    if array is None:
        return None
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ArtifactError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, expected bytes of text: copy it again"
        )
    value = parse_json(
        array.tobytes(), f"{path}: {name}", ArtifactError, advice=": copy the artifact again"
    )
    if not is_one(value):
        raise ArtifactError(f"{path}: {name} is no {what}: export the artifact again")
    return value


_ANY = -1  # a length that is not known beforehand


def _problems(reference: Reference, shape: Shape) -> Iterator[str]:
    """Whatever would make no sense, or a traceback, later. Types and shapes first: the rest needs them."""
    count, top = len(np.atleast_1d(reference.tokens)), reference.top_ids.shape[-1:]
    kept = top[0] if top else 0
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "tokens": ("i", (_ANY,)),
        "windows": ("i", (_ANY, 2)),
        "top_ids": ("u", (count, kept)),
        "top_logits": ("f", (count, kept)),
        "logsumexp": ("f", (count,)),
        "target_logits": ("f", (count,)),
        "full_positions": ("i", (_ANY,)),
        "full_logits": ("f", (len(np.atleast_1d(reference.full_positions)), shape.n_logits)),
        "greedy_prompt": ("i", (_ANY,)),
        "greedy_tokens": ("i", (_ANY,)),
    }
    wrong = list(_misshapen(reference, expected))
    if reference.context is not None:
        wrong += _context_misshapen(reference.context)
    if wrong:
        yield from wrong
        return
    if not 0 < count <= MOST_POSITIONS or not 0 < kept <= shape.n_logits:
        yield f"it has {count} positions with {kept} logits each"
        return
    starts, lengths = reference.windows.astype(np.int64).T
    if (
        not len(starts)
        or (lengths < 1).any()
        or (starts != np.cumsum(lengths) - lengths).any()
        or lengths.sum() != count
    ):
        yield "windows are not pieces of tokens, one after the other"
    elif lengths.max() > shape.n_ctx:
        yield f"windows has one of {lengths.max()} tokens, more than the context of {shape.n_ctx}"
    for name, most in (("tokens", shape.vocab_size), ("greedy_prompt", shape.vocab_size)):
        yield from _beyond(name, getattr(reference, name), most)
    yield from _beyond("greedy_tokens", reference.greedy_tokens, shape.n_logits)
    yield from _beyond("top_ids", reference.top_ids, shape.n_logits)
    yield from _beyond("full_positions", reference.full_positions, count)
    # each full position has n_logits values, so these are few
    greedy = len(reference.greedy_prompt) + len(reference.greedy_tokens)
    if not len(reference.greedy_prompt) or greedy > shape.n_ctx + 1:
        yield f"greedy_prompt and greedy_tokens have {greedy} tokens, which the context of {shape.n_ctx} does not hold"
    for name in ("top_logits", "logsumexp", "full_logits"):
        if not np.isfinite(getattr(reference, name)).all():
            yield f"{name} holds values that are no numbers"
    # a NaN where no token follows, and nowhere else
    ends = np.zeros(count, bool)
    ends[np.clip(starts + lengths - 1, 0, count - 1)] = True
    if not np.isfinite(reference.target_logits[~ends]).all():
        yield "target_logits holds values that are no numbers"
    if (reference.top_logits.max(-1) > reference.logsumexp + 1e-3).any():
        yield "logsumexp is less than a logit"
    if reference.context is not None:
        yield from _context_problems(reference.context, shape)


def _misshapen(arrays: Any, expected: dict[str, tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    for name, (kind, form) in expected.items():
        array = getattr(arrays, name)
        good = len(array.shape) == len(form) and all(
            want in (_ANY, size) for want, size in zip(form, array.shape)
        )
        if array.dtype.kind != kind or not good:
            words_of = {"i": "signed integers", "u": "unsigned integers", "f": "floats"}[kind]
            size = ", ".join("n" if want == _ANY else str(want) for want in form)
            yield f"{name} is {array.dtype} {list(array.shape)}, expected {words_of} [{size}]"


def _context_misshapen(context: Context) -> Iterator[str]:
    count, kept = len(np.atleast_1d(context.context_tokens)), context.context_ids.shape[-1:]
    row = (count, kept[0] if kept else 0)
    yield from _misshapen(
        context,
        {
            "context_tokens": ("i", (_ANY,)),
            "context_windows": ("i", (_ANY, 2)),
            "context_ids": ("u", row),
            "context_logits": ("f", row),
            "context_logsumexp": ("f", (count,)),
        },
    )


def _context_problems(context: Context, shape: Shape) -> Iterator[str]:
    count, kept = context.context_ids.shape
    if not 0 < count <= MOST_POSITIONS or not 0 < kept <= shape.n_logits:
        yield f"it has {count} positions of the context with {kept} logits each"
        return
    lengths, positions = context.context_windows.astype(np.int64).T
    if not len(lengths) or (lengths < 1).any() or lengths.sum() != count or (positions < 0).any():
        yield "context_windows are not pieces of context_tokens"
    elif (lengths + positions).max() > shape.n_ctx:
        yield f"context_windows reach position {(lengths + positions).max() - 1}, beyond the context of {shape.n_ctx}"
    yield from _beyond("context_tokens", context.context_tokens, shape.vocab_size)
    yield from _beyond("context_ids", context.context_ids, shape.n_logits)
    if not (
        np.isfinite(context.context_logits).all() and np.isfinite(context.context_logsumexp).all()
    ):
        yield "context_logits or context_logsumexp holds values that are no numbers"
    elif (context.context_logits.max(-1) > context.context_logsumexp + 1e-3).any():
        yield "context_logsumexp is less than a logit"


def _beyond(name: str, values: np.ndarray, most: int) -> Iterator[str]:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < most:
        yield f"{name} holds {int(values.min())} to {int(values.max())}, expected 0 to {most - 1}"


def summarize(
    windows: list[list[int]],
    logits: Callable[[int], np.ndarray],
    greedy: tuple[list[int], list[int]],
    *,
    budget: int,
    per_token: int = 0,
) -> Reference:
    """A Reference of at most about `budget` bytes: the first positions of `windows` that fit. `per_token`: bytes that each
    of them will take beside.

    logits(i) gives window i's logits (length, vocab_size) float32; greedy is (prompt, continuation).
    """
    vocab_size = logits(0).shape[1]
    top = min(TOP, vocab_size)
    id_type = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    per_position = top * (4 + np.dtype(id_type).itemsize) + 12 + per_token
    n_full = 2 if 8 * vocab_size < budget // 4 else 1
    room = max(16, (budget - 4 * n_full * vocab_size - 4096) // per_position)
    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ids", "logits", "logsumexp", "targets")
    }
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


def compare(
    reference: Reference, logits: Callable[[list[int]], np.ndarray], *, classes: bool = False
) -> Figures:
    """Figures of a model against what the reference carries.

    Differences are those of the 64 highest logits (and of the full positions); KL takes all other tokens as one bin, so
    it is never more than the true one; top-1 and perplexity are exact. logits(window) -> (length, vocab_size).
    classes: the logits are a classification head's, and there is no perplexity.
    """
    return tally(reference, logits, classes=classes).figures()


def tally(
    reference: Reference, logits: Callable[[list[int]], np.ndarray], *, classes: bool = False
) -> Tally:
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
    tally.kl.append(kl_of_top(log_p, log_q))

    best = top.argmax(-1)
    chosen = values.argmax(-1)
    theirs = np.take_along_axis(ids, best[:, None], -1)[:, 0]
    known = np.where(ids == chosen[:, None], top, -np.inf).max(-1)
    # a choice outside the 64 is at least as far behind as the last of them
    lead = top.max(-1) - np.where(np.isfinite(known), known, top.min(-1))
    tally.choice(chosen == theirs, lead)


def _add_loss(
    tally: Tally, reference: Reference, here: slice, values: np.ndarray, window: np.ndarray
) -> None:
    nll_reference = reference.logsumexp[here] - reference.target_logits[here]
    tally.nll_reference.append(nll_reference[:-1].astype(np.float64))
    rows = np.arange(len(window) - 1)
    tally.nll.append(logsumexp(values)[:-1] - values[rows, window[1:]])

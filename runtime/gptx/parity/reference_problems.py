"""Problems of a reference that came with an artifact from a stranger: wrong types, shapes, values.

Every array is checked before gptx verify computes with it, so that a broken file gives a sentence
instead of a traceback or hours of work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gptx.artifact.manifest import Shape
from gptx.parity.whole_context import Context

if TYPE_CHECKING:
    from gptx.parity.reference import Reference

# Positions of the proof text, and of the context windows: with more, verify could run for hours.
MOST_POSITIONS = 16_384
_ANY = -1  # in an expected shape: a length that does not depend on the model

# array name -> (kind of numpy's dtype, expected shape)
Forms = Mapping[str, tuple[str, tuple[int, ...]]]


def problems(reference: Reference, shape: Shape) -> Iterator[str]:
    """Yield a phrase for each fault for which `reference` cannot serve a model of this `shape`."""
    # Types and shapes come first, because the other checks compute with the arrays.
    wrong = list(_misshapen(reference, _forms(reference, shape)))
    if reference.context is not None:
        wrong += _misshapen(reference.context, _context_forms(reference.context))
    if wrong:
        yield from wrong
        return
    if problem := _too_many("positions", reference.top_ids, shape):
        yield problem
        return
    yield from _window_problems(reference, shape)
    yield from _token_problems(reference, shape)
    yield from _value_problems(reference)
    if reference.context is not None:
        yield from _context_problems(reference.context, shape)


def _forms(reference: Reference, shape: Shape) -> Forms:
    count, top = len(np.atleast_1d(reference.tokens)), reference.top_ids.shape[-1:]
    kept = top[0] if top else 0
    full = len(np.atleast_1d(reference.full_positions))
    return {
        "tokens": ("i", (_ANY,)),
        "windows": ("i", (_ANY, 2)),
        "top_ids": ("u", (count, kept)),
        "top_logits": ("f", (count, kept)),
        "logsumexp": ("f", (count,)),
        "target_logits": ("f", (count,)),
        "full_positions": ("i", (_ANY,)),
        "full_logits": ("f", (full, shape.n_logits)),
        "greedy_prompt": ("i", (_ANY,)),
        "greedy_tokens": ("i", (_ANY,)),
    }


def _context_forms(context: Context) -> Forms:
    count, kept = len(np.atleast_1d(context.context_tokens)), context.context_ids.shape[-1:]
    row = (count, kept[0] if kept else 0)
    return {
        "context_tokens": ("i", (_ANY,)),
        "context_windows": ("i", (_ANY, 2)),
        "context_ids": ("u", row),
        "context_logits": ("f", row),
        "context_logsumexp": ("f", (count,)),
    }


def _misshapen(arrays: Any, forms: Forms) -> Iterator[str]:
    for name, (kind, form) in forms.items():
        array = getattr(arrays, name)
        good = len(array.shape) == len(form) and all(
            want in (_ANY, size) for want, size in zip(form, array.shape)
        )
        if array.dtype.kind != kind or not good:
            words = {"i": "signed integers", "u": "unsigned integers", "f": "floats"}[kind]
            size = ", ".join("n" if want == _ANY else str(want) for want in form)
            yield f"{name} is {array.dtype} {list(array.shape)}, expected {words} [{size}]"


def _window_problems(reference: Reference, shape: Shape) -> Iterator[str]:
    starts, lengths = reference.windows.astype(np.int64).T
    if (
        not len(starts)
        or (lengths < 1).any()
        or (starts != np.cumsum(lengths) - lengths).any()
        or lengths.sum() != len(reference.tokens)
    ):
        yield "windows are not pieces of tokens, one after the other"
    elif lengths.max() > shape.n_ctx:
        yield f"a window has {lengths.max()} tokens, more than the context of {shape.n_ctx}"


def _token_problems(reference: Reference, shape: Shape) -> Iterator[str]:
    yield from _beyond("tokens", reference.tokens, shape.vocab_size)
    yield from _beyond("greedy_prompt", reference.greedy_prompt, shape.vocab_size)
    yield from _beyond("greedy_tokens", reference.greedy_tokens, shape.n_logits)
    yield from _beyond("top_ids", reference.top_ids, shape.n_logits)
    yield from _beyond("full_positions", reference.full_positions, len(reference.tokens))
    greedy = len(reference.greedy_prompt) + len(reference.greedy_tokens)
    if not len(reference.greedy_prompt) or greedy > shape.n_ctx + 1:
        yield (
            f"greedy_prompt and greedy_tokens have {greedy} tokens, which the context of"
            f" {shape.n_ctx} does not hold"
        )


def _value_problems(reference: Reference) -> Iterator[str]:
    for name in ("top_logits", "logsumexp", "full_logits"):
        if not np.isfinite(getattr(reference, name)).all():
            yield f"{name} holds NaN or infinite values"
    # A target logit is NaN at the end of a window, where no token follows, and nowhere else.
    count = len(reference.tokens)
    starts, lengths = reference.windows.astype(np.int64).T
    ends = np.zeros(count, bool)
    ends[np.clip(starts + lengths - 1, 0, count - 1)] = True
    if not np.isfinite(reference.target_logits[~ends]).all():
        yield "target_logits holds NaN or infinite values"
    if (reference.top_logits.max(-1) > reference.logsumexp + 1e-3).any():
        yield "logsumexp is less than one of the position's logits"


def _too_many(places: str, ids: np.ndarray, shape: Shape) -> str | None:
    """A phrase if `ids` (positions, logits kept of each) is empty or larger than verify allows."""
    count, kept = ids.shape
    if 0 < count <= MOST_POSITIONS and 0 < kept <= shape.n_logits:
        return None
    return (
        f"it has {count} {places} with {kept} logits each, expected at most {MOST_POSITIONS} with"
        f" at most {shape.n_logits}"
    )


def _context_problems(context: Context, shape: Shape) -> Iterator[str]:
    if problem := _too_many("positions of the context", context.context_ids, shape):
        yield problem
        return
    count = len(context.context_ids)
    lengths, positions = context.context_windows.astype(np.int64).T
    if not len(lengths) or (lengths < 1).any() or lengths.sum() != count or (positions < 0).any():
        yield "context_windows are not pieces of context_tokens"
    elif (lengths + positions).max() > shape.n_ctx:
        last = (lengths + positions).max() - 1
        yield f"context_windows reach position {last}, beyond the context of {shape.n_ctx}"
    yield from _beyond("context_tokens", context.context_tokens, shape.vocab_size)
    yield from _beyond("context_ids", context.context_ids, shape.n_logits)
    if not (
        np.isfinite(context.context_logits).all() and np.isfinite(context.context_logsumexp).all()
    ):
        yield "context_logits or context_logsumexp holds NaN or infinite values"
    elif (context.context_logits.max(-1) > context.context_logsumexp + 1e-3).any():
        yield "context_logsumexp is less than a logit"


def _beyond(name: str, values: np.ndarray, most: int) -> Iterator[str]:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < most:
        yield f"{name} holds {int(values.min())} to {int(values.max())}, expected 0 to {most - 1}"

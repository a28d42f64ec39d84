"""Compare a model with the reference that an artifact carries: logits in, figures out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gptx.parity.metrics import Figures, Tally
from gptx.parity.reference import Reference
from gptx.parity.whole_context import kl_of_top
from gptx.softmax import log_softmax, logsumexp

# token ids of a window -> logits (length, n_logits)
Logits = Callable[[list[int]], np.ndarray]


def compare(reference: Reference, logits: Logits, *, classes: bool = False) -> Figures:
    """Figures of a model over the proof text of `reference`.

    Differences of logits: of the 64 highest logits at every position, and of all logits at the full
    positions. KL divergence: the tokens outside the 64 count as one token, so the figure is at most
    the true divergence. Top-1 and perplexity are exact.

    classes: the logits are those of a classification head, which has no perplexity.
    """
    return tally(reference, logits, classes=classes).figures()


def tally(reference: Reference, logits: Logits, *, classes: bool = False) -> Tally:
    """Compare every position of the proof text; arguments as for `compare`."""
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
                found.add_difference(expected.astype(np.float64), values[at - start])
    return found


def _add(tally: Tally, reference: Reference, here: slice, values: np.ndarray) -> None:
    """Add differences, KL divergence and top-1 of the positions `here`, (length, n_logits)."""
    ids = reference.top_ids[here].astype(np.int64)
    top = reference.top_logits[here].astype(np.float64)
    tally.add_difference(top, np.take_along_axis(values, ids, -1))

    log_p = top - reference.logsumexp[here].astype(np.float64)[:, None]
    log_q = np.take_along_axis(log_softmax(values), ids, -1)
    tally.kl.append(kl_of_top(log_p, log_q))

    best = top.argmax(-1)
    chosen = values.argmax(-1)
    theirs = np.take_along_axis(ids, best[:, None], -1)[:, 0]
    known = np.where(ids == chosen[:, None], top, -np.inf).max(-1)
    # A token that is not kept has a logit of at most the lowest kept one.
    lead = top.max(-1) - np.where(np.isfinite(known), known, top.min(-1))
    tally.add_choice(chosen == theirs, lead)


def _add_loss(
    tally: Tally, reference: Reference, here: slice, values: np.ndarray, window: np.ndarray
) -> None:
    """Add the negative log-likelihoods of all tokens of the window except the first."""
    nll_reference = reference.logsumexp[here] - reference.target_logits[here]
    tally.nll_reference.append(nll_reference[:-1].astype(np.float64))
    rows = np.arange(len(window) - 1)
    tally.nll.append(logsumexp(values)[:-1] - values[rows, window[1:]])

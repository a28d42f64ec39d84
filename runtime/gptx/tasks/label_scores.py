"""log P(label | prompt) of several labels, as token ids: a session in, nats out.

Beginnings that labels share are computed once. A label of a single token costs no run of the graph
of its own. This file knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptx.generation.session import Session
from gptx.softmax import log_softmax
from gptx.text.prefix import common_length


def label_scores(
    session: Session, prompt: Sequence[int], labels: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probability of each token of each label, in nats.

    session: a session of one row. Tokens that the row shares with the beginning of `prompt` are not
    computed again. Afterwards the row holds the prompt.
    """
    # The last token is always computed again, as its logits are needed.
    session.rewind([min(common_length(session.tokens[0], prompt), len(prompt) - 1)])
    # The session holds the prompt and `path`, the beginning of a label; after[n] has the
    # log-probabilities behind the first n tokens of `path`.
    after = [_log_probabilities(session, prompt[session.lengths[0] :])[-1]]
    path: Sequence[int] = ()
    scores: list[list[float]] = [[] for _ in labels]
    # In sorted order, labels with the same beginning follow each other.
    for at in sorted(range(len(labels)), key=lambda at: tuple(labels[at])):
        label = labels[at]
        shared = common_length(path, label[:-1])
        session.rewind([len(prompt) + shared])
        del after[shared + 1 :]
        path = label[:-1]
        if len(path) > shared:
            after += _log_probabilities(session, path[shared:], each=True)
        scores[at] = [float(after[n][token]) for n, token in enumerate(label)]
    session.rewind([len(prompt)])
    return scores


def _log_probabilities(
    session: Session, ids: Sequence[int], *, each: bool = False
) -> list[np.ndarray]:
    """Feed tokens, and return the log-probabilities after each, or after the last: float64 (V,)."""
    rows = session.feed([ids], all_logits=True)[0] if each and len(ids) > 1 else session.feed([ids])
    return list(log_softmax(rows))

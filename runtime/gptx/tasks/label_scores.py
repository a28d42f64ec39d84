"""log P(label | prompt) of several labels: a session that has read the prompt and token ids in, nats out.

What labels have in common at their beginning is run once; a label of one token costs nothing more. Knows no text.
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
    """The log-probability of each token of each label. Of the prompt, what the session's only row does not hold already
    is read; afterwards the row holds the prompt."""
    # one token at least is fed, for its logits
    session.rewind([min(common_length(session.tokens[0], prompt), len(prompt) - 1)])
    after = [
        _log_probabilities(session, prompt[session.lengths[0] :])[-1]
    ]  # after[n]: following n tokens of `path`
    path: Sequence[int] = ()
    scores: list[list[float]] = [[] for _ in labels]
    for at in sorted(
        range(len(labels)), key=lambda at: tuple(labels[at])
    ):  # those that begin alike side by side
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
    """After the last token, or after each one, float64 (V,)."""
    rows = session.feed([ids], all_logits=True)[0] if each and len(ids) > 1 else session.feed([ids])
    return list(log_softmax(rows.astype(np.float64)))

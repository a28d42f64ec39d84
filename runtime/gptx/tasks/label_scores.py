"""log P(label | prompt) of several labels, as token ids: an engine in, nats out.

The prompt is read once, and then all labels beside each other. A label of a single token costs no
run of the graph of its own. This file knows no text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gptx.engine.engine import Engine
from gptx.engine.read import LastLogits, Logprobs
from gptx.engine.run import run
from gptx.softmax import log_softmax


def label_scores(
    engine: Engine,
    prompt: Sequence[int],
    labels: Sequence[Sequence[int]],
    cancel: threading.Event | None = None,
) -> list[list[float]]:
    """The log-probability of each token of each label, in nats.

    cancel: ends the work once it is set. Raises GptxError then.
    """
    first = LastLogits(prompt)
    run(engine, [first], cancel)
    after_prompt = log_softmax(first.logits)
    # The prompt is stored by now, so each of these reads the tokens of its label alone.
    longer = [Logprobs([*prompt, *label], len(prompt) + 1) for label in labels if len(label) > 1]
    run(engine, longer, cancel)
    rest = iter(longer)
    return [
        [float(after_prompt[label[0]]), *(next(rest).values if len(label) > 1 else ())]
        for label in labels
    ]

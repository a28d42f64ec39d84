"""The figures of a served workload: speed, and how long requests and tokens had to wait."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from gptx.bench.figures import Spread
from gptx.errors import GptxError
from gptx.text.prefix import common_length
from servers.server import Served, Workload

Figures = dict[str, float]


def figures(workload: Workload, served: Served, first: Served) -> Figures:
    """Seconds and tokens a second of one workload. first: what the first engine served.

    Raises GptxError if a request did not get all its tokens.
    """
    if wrong := [len(one) for one in served.times if len(one) != workload.new_tokens]:
        raise GptxError(f"a request got {wrong[0]} tokens, expected {workload.new_tokens}")
    waits = [times[0] - came for times, came in zip(served.times, workload.arrivals)]
    gaps = np.concatenate([np.diff(times) for times in served.times])
    ended = max(times[-1] for times in served.times)
    found = {
        "tokens_per_s": workload.new_tokens * len(served.times) / ended,
        "first_p50_s": float(np.percentile(waits, 50)),
        "first_p99_s": float(np.percentile(waits, 99)),
        "between_p50_s": float(np.percentile(gaps, 50)),
        "between_p99_s": float(np.percentile(gaps, 99)),
    }
    if not workload.sampling.temperature:
        pairs = zip(served.tokens, first.tokens)
        found["same_tokens"] = float(median(common_length(a, b) for a, b in pairs))
    return found


def spreads(rounds: Sequence[Figures]) -> dict[str, Spread]:
    """The median, lowest and highest of each figure over the rounds."""
    return {name: Spread.of(one[name] for one in rounds) for name in rounds[0]}

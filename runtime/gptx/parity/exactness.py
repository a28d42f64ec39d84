"""Native operators give a request the same logits to the bit, whatever else runs: prove it here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gptx.engine.loaded_model import LoadedModel
from gptx.parity.measure import Measured
from gptx.parity.random_schedule import Difference, cases, run_schedule
from gptx.parity.reference import Reference
from gptx.parity.report import Check

REQUESTS, SCHEDULES = 6, 3
LONGEST = 64  # tokens of a prompt


def inexact(consistency: Mapping[str, float]) -> list[str]:
    """A phrase for each way to compute the same logits that does not give the same bits.

    consistency: see measure.self_consistency.
    """
    return [
        f"{name} differs by {value:.3g}, and native operators promise 0"
        for name, value in consistency.items()
        if not name.endswith("_kl") and value != 0
    ]


def check_exactness(model: LoadedModel, reference: Reference, measured: Measured) -> Check:
    """Run random schedules (random_schedule.py) and look at what was measured."""
    if found := inexact(measured.consistency):
        return Check("same bits", "; ".join(found), False)
    random, text = np.random.default_rng(0), reference.tokens.tolist()
    total = Difference()
    requests = cases(model, text, random, REQUESTS, longest=LONGEST)
    for _ in range(SCHEDULES):
        one = run_schedule(model, requests, random)
        total.compared += one.compared
        total.differing += one.differing
    if total.differing:
        what = (
            f"{total.differing:,} of {total.compared:,} rows of logits of requests that share steps"
            " are not those of the request alone"
        )
    else:
        what = (
            f"{total.compared:,} rows of logits of requests that share steps at random are, to the"
            " bit, those of the request alone"
        )
    return Check("same bits", what, not total.differing)

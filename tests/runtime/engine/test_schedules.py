"""A request gives the same logits to the bit, whatever else runs: random schedules in small.

benchmarks/schedules.py runs thousands of them.
"""

from __future__ import annotations

import numpy as np
import pytest

import gptx
from builders.native_graphs import native_kernels, needs_library
from gptx.parity.random_schedule import Difference, cases, run_schedule
from gptx.parity.reference import Reference


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
@pytest.mark.parametrize("threads", [1, 2])
def test_random_schedules(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The default model's steps are too short for speculation to pay: here it is tried anyway.
    monkeypatch.setattr("gptx.engine.speculation.SHORTEST_STEP", -1.0)
    random = np.random.default_rng(threads)
    with gptx.load(threads=1, speculate=False) as alone:
        text = Reference.load(alone.path, alone.manifest.model).tokens.tolist()
        requests = cases(alone, text, random, 12, longest=120)
    total = Difference()
    with gptx.load(threads=threads) as model:
        for _ in range(15):
            one = run_schedule(model, requests, random)
            total.compared += one.compared
            total.differing += one.differing
        stats = model.stats()
    assert total.compared > 300 and total.differing == 0
    assert stats.prefix_hits > 5 and stats.drafted > stats.accepted > 0

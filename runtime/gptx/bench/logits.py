"""Every logit of a text from one engine, in its own process: written to a file as the reference, or compared with one.

A reference is either such a file, (positions, vocabulary) float32, or what an artifact carries of its own
(gptx_reference.safetensors: the 64 highest logits of each position).
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np

from gptx.artifact.manifest import read_manifest
from gptx.bench.engine import Engine, Job, Logits
from gptx.errors import GptxError
from gptx.parity.compare import tally
from gptx.parity.metrics import Tally
from gptx.parity.reference import Reference


class Text(NamedTuple):
    windows: list[list[int]]
    write: str | None = None  # make this file of the logits
    file: str | None = None  # compare with this file
    carried: str | None = None  # compare with what the artifact in this folder carries


def judged(engine: Engine, job: Job, text: Text) -> dict[str, Any]:
    assert engine.logits is not None
    logits = engine.logits(job)
    seconds = 0.0

    def timed(window: list[int]) -> np.ndarray:
        nonlocal seconds
        began = time.perf_counter()
        values = logits(window)
        seconds += time.perf_counter() - began
        if len(values) != len(window):
            raise GptxError(f"it gave logits after {len(values)} of {len(window)} tokens")
        return values

    found = _compared(text, timed)
    return {**found.figures().to_dict(), **change(found), "seconds": seconds}


def _compared(text: Text, logits: Logits) -> Tally:
    """Against what the artifact carries, against the file, or (where it is written first) against itself."""
    if text.carried is not None:
        carried = read_manifest(text.carried)
        return tally(Reference.load(carried.path, carried.model), logits)
    found, at, rows = Tally(), 0, sum(map(len, text.windows))
    mapped: np.ndarray | None = None
    for window in text.windows:
        values = logits(window)
        shape = rows, values.shape[1]
        if mapped is None and text.write is not None:
            mapped = np.memmap(text.write, np.float32, "w+", shape=shape)
        elif mapped is None:
            assert text.file is not None
            mapped = np.memmap(text.file, np.float32, "r").reshape(rows, -1)
        assert mapped is not None
        if mapped.shape != shape:
            raise GptxError(f"it has {shape[1]} logits, and the reference has {mapped.shape[1]}")
        here = slice(at, at + len(window))
        if text.write is not None:
            mapped[here] = values
        found.add(np.asarray(mapped[here]), values, np.array([*window[1:], -1]))
        at += len(window)
    return found


def change(found: Tally) -> dict[str, float]:
    """How much larger the perplexity is than the reference's, with the standard error of paired tokens."""
    worse = np.concatenate(found.nll) - np.concatenate(found.nll_reference)
    share = math.exp(min(worse.mean(), 700.0)) - 1  # more is no float
    error = (
        (1 + share) * float(worse.std(ddof=1)) / math.sqrt(len(worse))
        if len(worse) > 1
        else math.nan
    )
    return {"change": share, "change_error": error}

"""Compute all logits of a text with one engine, in its own process, and compare them.

The reference is either a file of logits, (positions, vocab_size) float32, which the first engine
writes, or the 64 highest logits of each position that an artifact carries
(gptx_reference.safetensors).
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
    """Token ids to score, and exactly one of three things to do with their logits."""

    windows: list[list[int]]
    write: str | None = None  # write them into this file
    file: str | None = None  # compare them with this file
    carried: str | None = None  # compare them with the reference of the artifact in this folder


def score(engine: Engine, job: Job, text: Text) -> dict[str, Any]:
    """The figures of parity.metrics, the change of perplexity, and the seconds that it took.

    Raises GptxError if the engine gives logits of another shape than the reference has.
    """
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

    found = _compare(text, timed)
    return {**found.figures().to_dict(), **change(found), "seconds": seconds}


def _compare(text: Text, logits: Logits) -> Tally:
    """Compare with the reference; logits that become the reference are compared with themselves."""
    if text.carried is not None:
        manifest = read_manifest(text.carried)
        return tally(Reference.load(manifest.path, manifest.model), logits)
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
    """How much larger the perplexity is than the reference's, as a share of it.

    The standard error is that of paired tokens: each token's loss minus its loss in the reference.
    """
    worse = np.concatenate(found.nll) - np.concatenate(found.nll_reference)
    share = math.exp(min(worse.mean(), 700.0)) - 1  # exp(710) overflows
    error = (
        (1 + share) * float(worse.std(ddof=1)) / math.sqrt(len(worse))
        if len(worse) > 1
        else math.nan
    )
    return {"change": share, "change_error": error}

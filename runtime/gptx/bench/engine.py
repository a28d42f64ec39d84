"""The interface of an engine: how the benchmark imports it, loads a model, gets tokens and logits.

Nothing heavy is imported here, because memory is measured from the engine's own import on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Job(NamedTuple):
    """The model to load, and how."""

    path: Path
    variant: str | None  # of PEER:PATH:VARIANT, for example a type of weights
    threads: int
    context: int  # tokens of the longest prompt and all that follows it
    ends: list[int]  # ids of end-of-text tokens: never picked, so that no text ends early
    device: str  # "cpu" | "cuda"


class Run(NamedTuple):
    """One generated text."""

    first: float  # seconds from the prompt's ids to the first new id
    decode: float  # seconds for all ids after the first
    tokens: list[int]


class BatchRun(NamedTuple):
    """Texts that were generated together, one a row."""

    decode: float  # seconds for all ids of all rows after each row's first
    rows: list[list[int]]


# (prompt, n) -> the first new token and n more, greedy among all tokens but end-of-text ones
Generate = Callable[[list[int], int], Run]
GenerateBatch = Callable[[list[list[int]], int], BatchRun]
# n ids -> logits (n, vocab_size) float32 after each of them
Logits = Callable[[list[int]], "np.ndarray"]


class Loaded(NamedTuple):
    """A loaded model; `batch` is None if the engine does not measure batches."""

    generate: Generate
    batch: GenerateBatch | None = None


@dataclass(frozen=True)
class Engine:
    """One engine; each file in gptx.bench.engines defines one as ENGINE."""

    packages: tuple[str, ...]  # distributions to report versions of; the first one is required
    install: str  # command that installs them
    start: Callable[[], object]  # imports the library
    load: Callable[[Job], Loaded] | None  # None: for quality only
    logits: Callable[[Job], Logits] | None  # None: for speed only
    takes_artifact: bool = False  # if no path is given, it loads the measured artifact
    takes_variant: bool = False  # PEER:PATH:VARIANT is allowed
    devices: tuple[str, ...] = ("cpu",)
    # (path, variant, empty folder) -> path to load: converts a model that it cannot read itself
    prepare: Callable[[Path, str | None, Path], Path] | None = None
    notes: Callable[[], str] = lambda: ""  # a sentence to print with the versions


def timed(tokens: Iterator[int]) -> Run:
    """Time an engine that yields its tokens one by one and feeds the prompt before the first."""
    began = time.perf_counter()
    first = next(tokens)
    at = time.perf_counter()
    rest = list(tokens)
    return Run(at - began, time.perf_counter() - at, [first, *rest])

"""What an engine is to the benchmark: how it is imported, loaded, asked for tokens and for logits.

Imports nothing heavy: memory is counted from what the engine's own library takes when it is imported.
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
    """What is to be loaded, and how."""

    path: Path
    variant: (
        str | None
    )  # what stands behind the path on the command line: int8 for ctranslate2, say
    threads: int
    context: int  # tokens that the longest prompt and what follows it take
    ends: list[int]  # token ids that are never picked, so that no text ends early
    device: str  # "cpu" | "cuda"


class Run(NamedTuple):
    """`first`: seconds from the prompt's ids to the first new id; `decode`: seconds for all the ids after it."""

    first: float
    decode: float
    tokens: list[int]


class BatchRun(NamedTuple):
    """`decode`: seconds for all the ids of all rows after each row's first."""

    decode: float
    rows: list[list[int]]


# (prompt, n) -> the first new token and n more, picked greedily among all that do not end the text
Generate = Callable[[list[int], int], Run]
GenerateBatch = Callable[[list[list[int]], int], BatchRun]
Logits = Callable[[list[int]], "np.ndarray"]  # n ids -> (n, vocab_size) float32, after each of them


class Loaded(NamedTuple):
    generate: Generate
    batch: GenerateBatch | None = None


@dataclass(frozen=True)
class Engine:
    packages: tuple[str, ...]  # distributions whose versions are reported; the first must be there
    install: str  # what to type where it is not
    start: Callable[[], object]  # imports the library
    load: Callable[[Job], Loaded] | None  # None: quality only
    logits: Callable[[Job], Logits] | None  # None: speed only
    takes_artifact: bool = False  # an artifact; without a path the one that is measured
    takes_variant: bool = False  # what may stand behind the path
    devices: tuple[str, ...] = ("cpu",)  # where it can be measured
    prepare: Callable[[Path, str | None, Path], Path] | None = (
        None  # (path, variant, empty folder) -> path to load
    )
    notes: Callable[[], str] = lambda: ""


def timed(tokens: Iterator[int]) -> Run:
    """A Run of an engine that gives its tokens one by one. The prompt is fed when the first is asked for."""
    began = time.perf_counter()
    first = next(tokens)
    at = time.perf_counter()
    rest = list(tokens)
    return Run(at - began, time.perf_counter() - at, [first, *rest])

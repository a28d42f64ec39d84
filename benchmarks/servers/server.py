"""The interface of an engine that serves requests: a workload in, the time of each new token out.

Nothing heavy is imported here, because each engine is loaded in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Job(NamedTuple):
    """The model to load, and how."""

    path: Path
    variant: str | None  # of NAME:PATH:VARIANT
    threads: int
    rows: int  # the most texts that grow at the same time
    context: int  # tokens of the longest prompt and all that follows it
    ends: list[int]  # ids of end-of-text tokens: no text ends early

    def options(self) -> dict[str, str]:
        """The variant `a,b=1` as {"a": "", "b": "1"}."""
        parts = (part.partition("=") for part in (self.variant or "").split(",") if part)
        return {name: value for name, _, value in parts}


class Sampling(NamedTuple):
    """How tokens are drawn; temperature 0: greedy. No top-k, and temperature comes before top-p."""

    temperature: float
    top_p: float
    seed: int


class Workload(NamedTuple):
    """Requests, each with the time in seconds at which it comes; times ascend."""

    prompts: list[list[int]]
    arrivals: list[float]
    new_tokens: int  # of each request
    sampling: Sampling


class Served(NamedTuple):
    """For each request, its new tokens, and the seconds from the start at which they came."""

    times: list[list[float]]
    tokens: list[list[int]]

    @classmethod
    def empty(cls, workload: Workload) -> Served:
        """Nothing came yet."""
        return cls([[] for _ in workload.prompts], [[] for _ in workload.prompts])

    def came(self, request: int, now: float, *tokens: int) -> None:
        """Count new tokens of a request."""
        self.tokens[request] += tokens
        self.times[request] += [now] * len(tokens)


class Loaded(NamedTuple):
    """A loaded model. weights: the type of its weights, and what else decides its quality."""

    serve: Callable[[Workload], Served]
    weights: str


@dataclass(frozen=True)
class Server:
    """One engine; each file in engines/ defines one as SERVER."""

    packages: tuple[str, ...]  # distributions to report versions of; the first one is required
    load: Callable[[Job], Loaded]  # imports the library, too
    # (path, variant, empty folder) -> path to load: converts a model that it cannot read itself
    prepare: Callable[[Path, str | None, Path], Path] | None = None
    takes_artifact: bool = False  # if no path is given, it loads the measured artifact


@dataclass
class Arrivals:
    """The requests of a workload as they come, by a clock that starts now."""

    times: Sequence[float]
    taken: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> bool:
        """Whether there are requests that were not taken."""
        return self.taken < len(self.times)

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def take(self, most: int) -> list[int]:
        """The requests that have come and were not taken, at most `most`."""
        now, first = self.now(), self.taken
        while self.left and self.taken < first + most and self.times[self.taken] <= now:
            self.taken += 1
        return list(range(first, self.taken))

    def sleep(self) -> None:
        """Wait until the next request comes."""
        if self.left:
            time.sleep(max(self.times[self.taken] - self.now(), 0))


def serve_batches(
    workload: Workload, rows: int, run: Callable[[list[int], Arrivals, Served], None]
) -> Served:
    """Serve with static batches: `run` gets the requests that wait, at most `rows`, each time."""
    served, arrivals = Served.empty(workload), Arrivals(workload.arrivals)
    while arrivals.left:
        if batch := arrivals.take(rows):
            run(batch, arrivals, served)
        else:
            arrivals.sleep()
    return served

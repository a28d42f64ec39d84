"""Rounds of cases on several engines by turns: settings and cases in, figures out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptx.bench.prompts import Cutter
from gptx.bench.weights import read_files
from servers.contender import Contender, Process
from servers.figures import Figures, figures, spreads
from servers.server import Sampling, Served, Workload

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """Requests of one kind. rate: how many come a second; None: all at once."""

    mode: str  # "greedy" | "sampled"
    requests: int
    rate: float | None = None

    @property
    def at_once(self) -> bool:
        return self.rate is None


@dataclass
class Result:
    """What one engine did: its figures by case, one a round."""

    engine: Contender
    weights: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    cases: dict[Case, list[Figures]] = field(default_factory=dict)

    def speed(self, mode: str) -> float:
        """The most tokens a second with all requests at once."""
        return max(
            spreads(rounds)["tokens_per_s"].median
            for case, rounds in self.cases.items()
            if case.mode == mode and case.at_once
        )


class Rounds:
    """Runs cases on all engines by turns, with other prompts each time."""

    def __init__(self, given: Namespace, process: Process, ids: list[int]) -> None:
        self._given, self._process = given, process
        each = sum(given.rows) + given.requests * (len(given.loads) + len(given.rates))
        self._cutter = Cutter(ids, given.rounds * (2 * 2 + len(given.modes) * each))

    def run(self, results: Sequence[Result], cases: Callable[[Result], list[Case]]) -> None:
        """Run all rounds of the cases that `cases` gives for each engine, and add the figures."""
        given = self._given
        for one in results:
            read_files(one.engine.path)
        for number in range(given.rounds):
            warm_up = Case(given.modes[-1], 2)
            random = np.random.default_rng([given.seed, number])
            gaps = random.exponential(size=given.requests)
            # The cases of engines differ in their rates only, so all get the same prompts.
            prompts = [
                [self._cutter.cut(given.prompt_tokens) for _ in range(case.requests)]
                for case in (warm_up, *cases(results[0]))
            ]
            first: list[Served] = []
            for one in results:
                print(f"round {number + 1} of {given.rounds}: {one.engine.label}", flush=True)
                asked = [warm_up, *cases(one)]
                work = [self._work(case, texts, gaps) for case, texts in zip(asked, prompts)]
                work[0] = work[0]._replace(new_tokens=WARM_UP_TOKENS)
                answer = self._process.serve(one.engine, work)
                served = [Served(**found) for found in answer["served"]]
                first = first or served
                one.weights, one.versions = answer["weights"], answer["versions"]
                for case, workload, mine, of_first in zip(asked[1:], work[1:], served, first):
                    found = figures(workload, mine, of_first)
                    one.cases.setdefault(case, []).append(found)

    def _work(self, case: Case, prompts: list[list[int]], gaps: np.ndarray) -> Workload:
        given = self._given
        arrivals = [0.0] * case.requests
        if case.rate is not None:
            arrivals = (np.cumsum(gaps) / case.rate).tolist()
        drawn = Sampling(given.temperature, given.top_p, given.seed)
        sampling = drawn if case.mode == "sampled" else Sampling(0.0, 1.0, given.seed)
        return Workload(prompts, arrivals, given.new_tokens, sampling)

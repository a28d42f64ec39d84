"""Many requests at once: tokens a second, and how long requests wait that come at random.

    python benchmarks/serving.py smollm2-int8 --against llamacpp:smollm2-q8_0.gguf \\
        ctranslate2:smollm2:int8 --rows 1 8 32 --loads 0.7 --json serving.json

Each engine runs in a process of its own, in rounds that alternate (A B C A B C ...). All get the
same prompts, cut from the artifact's proof text, and generate the same number of tokens for each;
no text ends early. Tokens are greedy, or drawn with temperature and top-p.

1. All requests at once: new tokens a second, from the first request to the last token.
2. Requests that come at random (a Poisson process): the time from a request's arrival to its first
   token, and the times between its tokens.

An engine is NAME[:PATH[:VARIANT]]; servers/engines has one file per name, which explains its
variants. Without --json, the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.folders import write_file
from gptx.artifact.manifest import read_manifest
from gptx.bench.figures import with_ratios
from gptx.bench.machine import lines, machine
from gptx.bench.prompts import Cutter, source
from gptx.bench.weights import read_files, weights_of
from gptx.errors import GptxError
from gptx.system.cpu import cpu_cores
from servers.contender import Contender, Process, contender, names
from servers.figures import Figures, figures, spreads
from servers.server import Sampling, Served, Workload
from table import table

LEGEND = """\
Medians over the rounds. Tokens/s: new tokens of all requests; prompts are read in the same time.
First token: from the arrival of a request. Between: of the tokens of one request; those that one
step gave come at once. In brackets: divided by that of the first engine."""
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


def main() -> None:
    given = arguments()
    try:
        engines = [contender(text, given.artifact) for text in ("gptx", *given.against)]
        results, facts = measure(given, engines)
    except GptxError as error:
        sys.exit(str(error))
    report(results)
    if given.json:
        write_file(given.json, (json.dumps(facts, indent=1) + "\n").encode())
    else:
        print(json.dumps(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifact", type=Path)
    add("--against", nargs="+", default=[], metavar="ENGINE", help=", ".join(names()))
    add("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32], help="requests at once")
    add("--modes", nargs="+", default=["greedy", "sampled"], choices=["greedy", "sampled"])
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--temperature", type=float, default=0.7)
    add("--top-p", type=float, default=0.9)
    add(
        "--loads",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="requests come at random, as many as this share of each engine's best speed allows",
    )
    add("--rates", nargs="+", type=float, default=[], metavar="N",
        help="requests come at random, N a second, for all engines")  # fmt: skip
    add("--requests", type=int, default=48, help="that come at random")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=cpu_cores())
    add("--seed", type=int, default=0)
    add("--text", type=Path, help="take the prompts from this file")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(
    given: argparse.Namespace, engines: Sequence[Contender]
) -> tuple[list[Result], dict[str, Any]]:
    """Run all rounds; the results, and all facts for JSON. Raises GptxError if an engine fails."""
    facts = machine(*sorted({name for one in engines for name in one.server.packages}))
    print(*lines(facts), sep="\n")
    manifest = read_manifest(given.artifact)
    text = source(manifest, given.text)
    context = given.prompt_tokens + given.new_tokens + 1
    process = Process(given.threads, max(given.rows), context, list(manifest.tokens.eos))
    at_once = [Case(mode, rows) for mode in given.modes for rows in given.rows]
    with tempfile.TemporaryDirectory(prefix="gptx-serving-") as folder:
        results = [Result(process.prepared(one, Path(folder) / one.name)) for one in engines]
        rounds = Rounds(given, process, text.ids)
        rounds.run(results, lambda _: at_once)
        if given.loads or given.rates:
            rounds.run(results, lambda one: at_random(given, one))
        sizes = [weights_of(one.engine.path, one.engine.variant).stored for one in results]
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "text")}
    settings |= {"artifact": str(given.artifact), "text": text.name, "sha256": text.sha256}
    return results, {
        "benchmark": "serving",
        **facts,
        "settings": settings,
        "engines": [to_dict(one, results[0], size) for one, size in zip(results, sizes)],
    }


def at_random(given: argparse.Namespace, one: Result) -> list[Case]:
    """The cases of requests that come at random, for one engine."""
    found = []
    for mode in given.modes:
        most = one.speed(mode) / given.new_tokens
        rates = [*given.rates, *(load * most for load in given.loads)]
        found += [Case(mode, given.requests, rate) for rate in rates]
    return found


class Rounds:
    """Runs cases on all engines by turns, with other prompts each time."""

    def __init__(self, given: argparse.Namespace, process: Process, ids: list[int]) -> None:
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


def to_dict(one: Result, first: Result, stored: int) -> dict[str, Any]:
    """For JSON, with ratios to the `first` engine where both did the same."""
    return {
        "engine": one.engine.label,
        "path": str(one.engine.path),
        "versions": one.versions,
        "weights": one.weights,
        "weights_bytes": stored,
        "cases": [
            {
                "mode": case.mode,
                "requests": case.requests,
                "requests_per_s": case.rate,
                **with_ratios(
                    spreads(rounds), spreads(first.cases[case]) if case in first.cases else {}
                ),
            }
            for case, rounds in one.cases.items()
        ],
    }


def report(results: Sequence[Result]) -> None:
    """Print the weights' types, and a table of each mode and kind of arrival."""
    print()
    print(table(["engine", "weights"], [(one.engine.label, one.weights) for one in results]))
    for mode in sorted({case.mode for case in results[0].cases}):
        at_once = [case for case in results[0].cases if case.mode == mode and case.at_once]
        heads = [f"{mode}, tokens/s at", *(f"{case.requests} rows" for case in at_once)]
        print("\n" + table(heads, [_speeds(one, results[0], at_once) for one in results]))
        rows = [
            row
            for one in results
            for case, rounds in one.cases.items()
            if case.mode == mode and not case.at_once
            for row in [_waits(one, case, rounds)]
        ]
        heads = [f"{mode}, at random", "requests/s", "tokens/s", "first p50", "p99"]
        if rows:
            print("\n" + table([*heads, "between p50", "p99 ms"], rows))
    print("\n" + LEGEND)


def _speeds(one: Result, first: Result, cases: Sequence[Case]) -> list[str]:
    cells = []
    for case in cases:
        mine, other = (spreads(which.cases[case])["tokens_per_s"] for which in (one, first))
        cells.append(f"{mine.median:.0f} ({mine.ratio(other):.2f})")
    return [one.engine.label, *cells]


def _waits(one: Result, case: Case, rounds: Sequence[Figures]) -> list[str]:
    found = spreads(rounds)
    seconds = ("first_p50_s", "first_p99_s", "between_p50_s", "between_p99_s")
    return [
        one.engine.label,
        f"{case.rate:.2f}",
        f"{found['tokens_per_s'].median:.0f}",
        *(f"{1e3 * found[name].median:.0f}" for name in seconds),
    ]


if __name__ == "__main__":
    main()

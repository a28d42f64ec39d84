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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptx.artifact.folders import write_file
from gptx.artifact.manifest import read_manifest
from gptx.bench.figures import with_ratios
from gptx.bench.machine import lines, machine
from gptx.bench.prompts import source
from gptx.bench.weights import weights_of
from gptx.errors import GptxError
from gptx.system.cpu import cpu_cores
from servers.contender import Contender, Process, contender, names
from servers.figures import Figures, spreads
from servers.rounds import Case, Result, Rounds
from table import table

LEGEND = """\
Medians over the rounds. Tokens/s: new tokens of all requests; prompts are read in the same time.
First token: from the arrival of a request. Between: of the tokens of one request; those that one
step gave come at once. In brackets: divided by that of the first engine."""


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
    share = "random arrivals, as many as this share of each engine's speed at once allows"
    add("--loads", nargs="+", type=float, default=[], metavar="SHARE", help=share)
    rate = "random arrivals, so many a second, the same for all engines"
    add("--rates", nargs="+", type=float, default=[], metavar="N", help=rate)
    add("--requests", type=int, default=48, help="random arrivals in all")
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

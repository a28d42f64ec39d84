"""Size, load time, memory, prefill and decode speed of engines beside each other, each in a process of its own.

    python benchmarks/speed.py gptx:smollm2-int8 genai:smollm2-int8 transformers:smollm2 ctranslate2:smollm2:int8

An engine is NAME:PATH or NAME:PATH:VARIANT; engines/ has one file for each name. Rounds alternate (A B C A B C ...),
and every round starts new processes. In a round each engine gets the same prompts, at batch 1, greedy, the end of the
text ignored; the first prompt of each length warms up and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt_export.proof import proof
from gptx.cpu import cpu_cores
from machine import lines, machine
from table import table
from tracked import tracked

ENGINES = Path(__file__).parent / "engines"
NAMES = sorted(file.stem.removesuffix("_engine") for file in ENGINES.glob("*_engine.py"))

Column = tuple[str, str, str, float]  # name in the JSON, head, how to print it, how many of its units
LOADING: list[Column] = [
    ("size", "size MB", ".1f", 1e-6),
    ("load_s", "load s", ".2f", 1),
    ("first_token_from_load_s", "load and 1st token s", ".2f", 1),
]
MEMORY: list[Column] = [
    ("memory_loaded", "loaded MB", ".0f", 1e-6),
    ("memory_used", "after use MB", ".0f", 1e-6),
    ("memory_process", "process MB", ".0f", 1e-6),
    ("peak_loading", "peak loading MB", ".0f", 1e-6),
    ("peak_running", "peak running MB", ".0f", 1e-6),
]
PROMPT: list[Column] = [
    ("prefill_s", "prefill ms", ".1f", 1e3),
    ("decode_tokens_per_s", "decode tok/s", ".1f", 1),
    ("same_tokens", "same tokens", ".0f", 1),
]
LEGEND = """\
Medians (lowest - highest, where they are more than 1% apart), and their ratio to the first engine's.
Loading: files in the page cache; "load and 1st token" has the first, cold prompt in it.
Memory: PSS less PSS after importing the library: after loading, before any prompt (weights that are mapped and not read
yet are missing there), and after all prompts; process: PSS at the end. Peaks: most RSS of the process in either phase.
Prefill: time to the first token. Decode: the tokens after it. Same tokens: new ones equal to the first engine's before
the first that differs."""


@dataclass(frozen=True)
class Contender:
    label: str  # as on the command line, the path's last part only
    engine: str
    path: Path
    variant: str | None


@dataclass(frozen=True)
class Spread:
    median: float
    lowest: float
    highest: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        median, lowest, highest = (
            float(f"{value:.6g}") for value in (statistics.median(values), min(values), max(values))
        )
        return cls(median, lowest, highest, len(values))

    def ratio(self, first: Spread) -> float:
        return round(self.median / first.median, 4) if first.median else 1.0


@dataclass(frozen=True)
class Result:
    contender: Contender
    versions: dict[str, str]
    notes: str
    figures: dict[str, Spread]  # LOADING and MEMORY
    prompts: dict[str, dict[str, Spread]]  # PROMPT, by prompt length

    def to_dict(self, first: Result) -> dict[str, Any]:
        return {
            "engine": self.contender.label,
            "path": str(self.contender.path),
            "versions": self.versions,
            "notes": self.notes,
            **_with_ratios(self.figures, first.figures),
            "prompts": {n: _with_ratios(values, first.prompts[n]) for n, values in self.prompts.items()},
        }


def main() -> None:
    args = arguments()
    facts = machine()
    print(*lines(facts), sep="\n")
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="gptx-speed-") as folder:
        ready = [prepared(contender, Path(folder) / str(i), environment) for i, contender in enumerate(args.engines)]
        ids = prompt_ids([contender.path for contender in args.engines], args.text)
        turns = [(r, contender) for r in range(args.rounds) for contender in ready]
        raw: dict[str, list[dict[str, Any]]] = {contender.label: [] for contender in ready}
        for number, contender in tracked(turns, "measuring"):
            raw[contender.label].append(run(contender, job(contender, number, ids, args), environment))
    first = raw[ready[0].label]
    results = [summary(original, raw[original.label], first) for original in args.engines]
    settings = {name: getattr(args, name) for name in ("threads", "rounds", "repeats", "new_tokens")} | {"batch": 1}
    print(f"{args.threads} threads, batch 1, {args.new_tokens} new tokens, {args.rounds} rounds of {args.repeats} runs")
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        print(f"{result.contender.label}: {versions}{'; ' if result.notes else ''}{result.notes}")
    print(report(results))
    found = [result.to_dict(results[0]) for result in results]
    text = json.dumps({"benchmark": "speed", **facts, "settings": settings, "engines": found})
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    if args.picture:
        from picture import draw

        draw(found, f"{facts['cpu']}, {args.threads} threads, batch 1, {facts['date'][:10]}", args.picture)
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", type=contender, metavar="ENGINE", help=f"NAME:PATH[:VARIANT]: {NAMES}")
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[128, 512], metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="M", help="after the first one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each prompt length in a round")
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--text", type=Path, help="where prompts are cut from; by default gpt_export's proof text")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    if len({one.label for one in args.engines}) < len(args.engines):
        parser.error("two engines have the same name: each line of the result needs one of its own")
    if min(*args.prompt_tokens, args.new_tokens, args.rounds, args.repeats, args.threads) < 1:
        parser.error("prompt tokens, new tokens, rounds, repeats and threads are all at least 1")
    return args


def contender(text: str) -> Contender:
    engine, _, rest = text.partition(":")
    path, _, variant = rest.partition(":")
    if engine not in NAMES or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{text}: expected NAME:PATH, with a path that exists and one of {NAMES}")
    label = ":".join(filter(None, (engine, Path(path).absolute().name, variant)))
    return Contender(label, engine, Path(path).absolute(), variant or None)


def prompt_ids(paths: Sequence[Path], text: Path | None) -> list[int]:
    """The tokens that prompts are cut from: the proof text, by the tokenizer of the first folder that has a config."""
    folder = next((path for path in paths if (path / "config.json").exists()), None)
    if folder is None:
        sys.exit("none of the engines is a folder with config.json and tokenizer, from which prompts could be made")
    vocab_size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    return [token for window in proof(folder, vocab_size=vocab_size, n_ctx=512, text=text).windows for token in window]


def job(contender: Contender, number: int, ids: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """The same for every engine in a round, and no prompt twice: some engines remember the beginnings of prompts."""
    prompts = {}
    for length in args.prompt_tokens:
        starts = [53 * (number * (args.repeats + 1) + i) % len(ids) for i in range(args.repeats + 1)]
        endless = ids * (2 + length // len(ids))
        prompts[str(length)] = [endless[start : start + length] for start in starts]
    return {
        "path": str(contender.path),
        "variant": contender.variant,
        "threads": args.threads,
        "context": max(args.prompt_tokens) + args.new_tokens + 1,
        "new_tokens": args.new_tokens,
        "prompts": prompts,
    }


def prepared(contender: Contender, folder: Path, environment: dict[str, str]) -> Contender:
    """The contender with the path that is loaded: CTranslate2 converts first, which is not part of what is measured."""
    options = ["--prepare", str(contender.path), contender.variant or "", str(folder)]
    return replace(contender, path=Path(child(contender, options, "", environment)))


def run(contender: Contender, job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    return json.loads(child(contender, [], json.dumps(job), environment))


def child(contender: Contender, options: list[str], text: str, environment: dict[str, str]) -> str:
    """The last line that the engine's own program prints."""
    command = [sys.executable, str(ENGINES / f"{contender.engine}_engine.py"), *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{contender.label} failed with exit status {done.returncode}; its own words are above")
    return done.stdout.splitlines()[-1]


def summary(contender: Contender, rounds: list[dict[str, Any]], first: list[dict[str, Any]]) -> Result:
    """`rounds`: what the engine's processes said; `first`: the same of the first engine."""
    measured = {
        "size": [one["size"] for one in rounds],
        "load_s": [one["load"] for one in rounds],
        "first_token_from_load_s": [one["first_from_load"] for one in rounds],
    }
    if rounds[0]["pss_loaded"] is not None:
        measured |= {
            "memory_loaded": [one["pss_loaded"] - one["pss_imported"] for one in rounds],
            "memory_used": [one["pss_used"] - one["pss_imported"] for one in rounds],
            "memory_process": [one["pss_used"] for one in rounds],
            "peak_loading": [one["rss_load_peak"] for one in rounds],
            "peak_running": [one["rss_run_peak"] for one in rounds],
        }
    prompts = {}
    for length in rounds[0]["runs"]:
        runs, theirs = ([run for one in every for run in one["runs"][length]] for every in (rounds, first))
        prompts[length] = {
            "prefill_s": Spread.of([run["first"] for run in runs]),
            "decode_tokens_per_s": Spread.of([(len(run["tokens"]) - 1) / run["decode"] for run in runs]),
            "same_tokens": Spread.of([common(run["tokens"], their["tokens"]) for run, their in zip(runs, theirs)]),
        }
    figures = {name: Spread.of(values) for name, values in measured.items()}
    return Result(contender, rounds[0]["versions"], rounds[0]["notes"], figures, prompts)


def common(one: list[int], other: list[int]) -> int:
    """How many tokens are the same before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def report(results: list[Result]) -> str:
    labels = [result.contender.label for result in results]
    figures = [result.figures for result in results]
    parts = [_section("loading", LOADING, labels, figures)]
    if "memory_loaded" in figures[0]:
        parts.append(_section("memory", MEMORY, labels, figures))
    for length in results[0].prompts:
        parts.append(_section(f"prompt of {length} tokens", PROMPT, labels, [r.prompts[length] for r in results]))
    return "\n\n".join(["", *parts, LEGEND, ""])


def _section(title: str, columns: list[Column], labels: list[str], figures: list[dict[str, Spread]]) -> str:
    heads = [title, *(cell for _, head, *_ in columns for cell in (head, "ratio"))]
    rows = [
        [label, *(cell for column in columns for cell in _cells(column, values, figures[0]))]
        for label, values in zip(labels, figures)
    ]
    return table(heads, rows)


def _cells(column: Column, values: dict[str, Spread], first: dict[str, Spread]) -> tuple[str, str]:
    name, _, form, scale = column
    value = values[name]
    low, middle, high = (format(x * scale, form) for x in (value.lowest, value.median, value.highest))
    apart = value.highest - value.lowest > 0.01 * value.median
    return f"{middle} ({low} - {high})" if apart else middle, f"{value.ratio(first[name]):.2f}"


def _with_ratios(values: dict[str, Spread], first: dict[str, Spread]) -> dict[str, Any]:
    return {name: vars(value) | {"ratio": value.ratio(first[name])} for name, value in values.items()}


if __name__ == "__main__":
    main()

"""Measure what huge pages are worth: decode steps with the weights in huge pages and in small ones.

    python benchmarks/large_pages.py smollm2-int8 gpt2-int8 --rounds 5

Each round starts two processes per artifact, in turn. In a process with huge pages, the first
session moves the weights, and takes longer for it. The five sessions after it are compared. Needs
Linux 6.1 or newer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gptx
from gptx.bench.machine import lines, machine
from gptx.bench.measure import proc_bytes
from gptx.system import huge_pages
from table import table

PROMPT, SESSIONS = 128, 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="decoded after a prompt of 128 tokens",
    )
    parser.add_argument("--child", choices=["large", "small"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.artifacts[0], args.new_tokens, args.child)
        return
    facts = machine("onnxruntime")
    print(*lines(facts), sep="\n")
    rows, found = [], {}
    for path in args.artifacts:
        raw: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
        for _ in range(args.rounds):
            for pages, results in raw.items():
                command = [
                    sys.executable,
                    __file__,
                    str(path),
                    f"--new-tokens={args.new_tokens}",
                    "--child",
                    pages,
                ]
                results.append(
                    json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                )
        medians = {
            pages: {
                name: statistics.median(result[name] for result in results) for name in results[0]
            }
            for pages, results in raw.items()
        }
        found[path.name] = medians
        small, large = medians["small"], medians["large"]
        rows.append(
            [
                path.name,
                f"{small['step_ms']:.2f}",
                f"{large['step_ms']:.2f}",
                f"{large['step_ms'] / small['step_ms'] - 1:+.1%}",
                f"{large['first_ms'] - small['first_ms']:.0f}",
                f"{large['large_mb']:.0f}",
                f"{(large['pss_mb'] - small['pss_mb']):+.1f}",
            ]
        )
    print(table(["", "step ms", "large pages", "", "once ms", "moved MB", "PSS MB"], rows))
    print(
        f"Medians of {args.rounds} rounds. Once: how much longer the first session took."
        " PSS: how much more there is."
    )
    print(json.dumps({"benchmark": "large_pages", **facts, "artifacts": found}))


def child(path: Path, new_tokens: int, pages: str) -> None:
    huge_pages.MOVE_AFTER = 32 if pages == "large" else 0
    sessions = []
    with gptx.load(path) as model:
        for _ in range(SESSIONS):
            with model.session() as session:
                new, seconds = list(range(300, 300 + PROMPT)), []
                for _ in range(new_tokens + 1):
                    began = time.perf_counter()
                    new = [int(session.feed([new])[0].argmax())]
                    seconds.append(time.perf_counter() - began)
            sessions.append(seconds)
        memory = {
            name: proc_bytes("/proc/self/smaps_rollup", name) or 0
            for name in ("AnonHugePages", "Pss")
        }
    steps = [statistics.mean(seconds[1:]) for seconds in sessions[1:]]
    figures = {"first_ms": 1e3 * sum(sessions[0]), "step_ms": 1e3 * statistics.median(steps)}
    figures |= {"large_mb": memory["AnonHugePages"] / 1e6, "pss_mb": memory["Pss"] / 1e6}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

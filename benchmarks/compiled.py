"""Measure the loading of artifacts, compiled and not: time and memory, in one process and in two.

    python benchmarks/compiled.py smollm2-int8 smollm2-int8-compiled \\
        smollm2-onnx smollm2-onnx-compiled

ARTIFACT:mapped is opened with gptx.load(..., map_weights=True).

Each round starts new processes, and artifacts alternate (A B A B ...). The memory of loading is the
process's PSS minus its PSS after `import gptx`, which does not import ONNX Runtime. PSS is read
from /proc, so this runs on Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gptx.bench.machine import lines, machine
from gptx.bench.measure import peak_rss, proc_bytes, pss, reset_peak, rss
from table import table

MAPPED = ":mapped"
COLUMNS = {  # figure: column heading, format, divisor
    "load_s": ("load s", ".2f", 1),
    "first_s": ("1st token s", ".2f", 1),
    "loaded": ("loaded MB", ".0f", 1e-6),
    "loaded_ratio": ("of weights", ".2f", 1),
    "peak": ("peak MB", ".0f", 1e-6),
    "peak_ratio": ("of weights", ".2f", 1),
    "used": ("after use MB", ".0f", 1e-6),
    "decode": ("tok/s", ".1f", 1),
    "both_private": ("two: private MB", ".0f", 1e-6),
    "both_pss": ("two: PSS MB", ".0f", 1e-6),
}
LEGEND = """\
Medians over the rounds.
Load: gptx.load, with the import of ONNX Runtime; the files are in the page cache.
1st token: from the start of gptx.load to the first token after a short prompt.
Loaded, after use: PSS added since `import gptx`, before the first prompt and after all prompts.
Peak: the most RSS that loading added.
Of weights: loaded PSS divided by the size of model.onnx and model.onnx_data.
Two: of each of two processes that have run the prompts, its private memory and its PSS."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT[:mapped]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=48,
        metavar="N",
        help="decoded after a prompt of 128 tokens",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.artifacts[0], args.threads, args.new_tokens)
        return
    facts = machine("onnxruntime")
    print(*lines(facts), sep="\n")
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in args.artifacts}
    for _ in range(args.rounds):
        for name in args.artifacts:
            raw[name].append(measured(name, args))
    found = {
        Path(artifact).name: {
            name: statistics.median(result[name] for result in results) for name in COLUMNS
        }
        for artifact, results in raw.items()
    }
    rows = [
        [
            name,
            *(format(values[figure] * scale, form) for figure, (_, form, scale) in COLUMNS.items()),
        ]
        for name, values in found.items()
    ]
    print(table(["", *(head for head, _, _ in COLUMNS.values())], rows))
    print(f"{LEGEND} {args.threads} threads, {args.rounds} rounds.")
    print(
        json.dumps({"benchmark": "compiled", **facts, "threads": args.threads, "artifacts": found})
    )


def measured(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One round: measure a process alone, then a second process beside the first."""
    folder = Path(name.removesuffix(MAPPED))
    size = sum(file.stat().st_size for file in (folder / "onnx").glob("model.onnx*"))
    command = [sys.executable, __file__, name, "--child"]
    command += [f"--threads={args.threads}", f"--new-tokens={args.new_tokens}"]
    processes: list[subprocess.Popen[str]] = []
    try:
        answers = []
        for _ in range(2):
            processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            answers.append(answer(processes[-1]))
        first = answers[0]
        both = [ask(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {
        **first,
        "loaded_ratio": first["loaded"] / size,
        "peak_ratio": first["peak"] / size,
        "both_private": statistics.mean(found["private"] for found in both),
        "both_pss": statistics.mean(found["pss"] for found in both),
    }


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def child(name: str, threads: int, new_tokens: int) -> None:
    """In the child process: load, run, print the figures; then print resident memory when asked."""
    import gptx

    imported, before = pss() or 0, rss() or 0
    reset_peak()
    began = time.perf_counter()
    folder, mapped = name.removesuffix(MAPPED), name.endswith(MAPPED)
    model = gptx.load(folder, threads=threads, map_weights=mapped)
    figures: dict[str, float] = {"load_s": time.perf_counter() - began}
    figures |= {"loaded": (pss() or 0) - imported, "peak": (peak_rss() or 0) - before}
    again = time.perf_counter()
    model.generate(list(range(5, 13)), max_new_tokens=1)
    figures["first_s"] = figures["load_s"] + time.perf_counter() - again
    prompt = list(range(5, 133))
    figures["decode"] = max(
        model.generate(
            prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens
        ).tokens_per_second
        for _ in range(3)
    )
    print(json.dumps({**figures, "used": (pss() or 0) - imported}), flush=True)
    sys.stdin.readline()
    private = sum(
        proc_bytes("/proc/self/smaps_rollup", field) or 0
        for field in ("Private_Clean", "Private_Dirty")
    )
    print(json.dumps({"private": private, "pss": pss()}), flush=True)
    sys.stdin.readline()  # stay alive until the other process has been measured


if __name__ == "__main__":
    main()

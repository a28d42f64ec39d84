"""Where a step of the engine spends its time: the graph, sampling, text, scheduling.

    python benchmarks/step_profile.py smollm2-int8 --rows 8

Texts grow together from prompts that are cut from the artifact's proof text, greedy, and drawn with
temperature and top-p. Functions of the engine are timed in this process, each without the timed
functions that it calls. Steps count in which all rows decode. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptx
from gptx.bench.machine import lines, machine
from gptx.bench.prompts import Cutter, source
from gptx.engine.engine import Engine
from gptx.engine.generate import Generate
from gptx.engine.requests import Requests
from gptx.engine.steps import Steps
from gptx.generation.sampling import Sampler
from gptx.generation.transcript import Transcript
from gptx.kv_cache.native import NativeCache
from gptx.kv_cache.rows import Rows
from gptx.system import huge_pages
from table import table

WHOLE = "whole step"
BETWEEN = "between steps"
# Function -> the part of a step that it is
PARTS = {
    (NativeCache, "_run"): "run of the graph",
    (Rows, "run"): "arrays and bindings for the graph",
    (Sampler, "sample"): "sampling",
    (Transcript, "push"): "text",
    (Generate, "take"): "the rest of taking a token",
    (Steps, "_add_drafts"): "guessing",
    (Steps, "plan"): "planning",
    (Steps, "run"): "the rest of a step",
    (Requests, "settle"): "ends and news of requests",
    (Requests, "_admit"): "requests from the queue",
    (Engine, "_step"): "the rest of the engine",
}


@dataclass
class Profile:
    """Times of the functions in PARTS; `steps` has the seconds of each part, a dict a step."""

    rows: int
    steps: list[dict[str, float]] = field(default_factory=list)
    _step: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _called: list[float] = field(default_factory=list)  # seconds of calls within each open call
    _counts: bool = False  # all rows decode in this step
    _ended: float = 0.0

    def time(self, owner: Any, name: str, part: str) -> None:
        """Replace a method by one that counts its time."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            self._called.append(0.0)
            try:
                return original(*args, **keywords)
            finally:
                seconds = time.perf_counter() - began
                self._step[part] += seconds - self._called.pop()
                if name == "plan":
                    self._begin(args[0], began)
                if self._called:
                    self._called[-1] += seconds
                else:
                    self._end(began, seconds)

        setattr(owner, name, timed)

    def _begin(self, steps: Steps, now: float) -> None:
        running = steps.running
        decoding = [row.decoding for one in running for row in one.work.rows]
        self._counts = len(decoding) == self.rows and all(decoding)

    def _end(self, began: float, seconds: float) -> None:
        if self._counts and self._ended:
            self._step[BETWEEN] = began - self._ended
            self._step[WHOLE] = seconds + began - self._ended
            self.steps.append(dict(self._step))
        self._step.clear()
        self._ended, self._counts = time.perf_counter(), False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speculate", action="store_true")
    given = parser.parse_args()
    facts = machine("onnxruntime")
    print(*lines(facts), sep="\n")
    huge_pages.MOVE_AFTER = 8  # during the warm-up
    model = gptx.load(
        given.artifact, threads=given.threads, max_rows=given.rows, speculate=given.speculate
    )
    cutter = Cutter(source(model.manifest, None).ids, 3 * given.rows * given.rounds)
    drawn = {"temperature": given.temperature, "top_p": given.top_p, "seed": 0}
    modes: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "sampled": drawn}

    def run(options: dict[str, Any]) -> None:
        prompts = [cutter.cut(given.prompt_tokens) for _ in range(given.rows)]
        model.generate(prompts, max_new_tokens=given.new_tokens, **options)

    run(modes["sampled"])
    profile = Profile(given.rows)
    for (owner, name), part in PARTS.items():
        profile.time(owner, name, part)
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for _ in range(given.rounds):
        for mode, options in modes.items():
            profile.steps = found[mode]
            run(options)
    medians = {mode: medians_of(steps) for mode, steps in found.items()}
    rows = [
        [part, *(cell for one in medians.values() for cell in cells(one, part))]
        for part in (*PARTS.values(), BETWEEN, WHOLE)
    ]
    heads = [cell for mode in modes for cell in (f"{mode}, ms", "%")]
    print(table([f"{given.rows} rows", *heads], rows))
    print(json.dumps({**facts, "rows": given.rows, "seconds": medians}))


def medians_of(steps: list[dict[str, float]]) -> dict[str, float]:
    parts = (*PARTS.values(), BETWEEN, WHOLE)
    return {part: statistics.median(step.get(part, 0.0) for step in steps) for part in parts}


def cells(medians: dict[str, float], part: str) -> tuple[str, str]:
    return f"{1e3 * medians[part]:.3f}", f"{100 * medians[part] / medians[WHOLE]:.1f}"


if __name__ == "__main__":
    main()

"""Random schedules of the engine: is each request, to the bit, what it is alone?

    python benchmarks/schedules.py --schedules 10000
    python benchmarks/schedules.py smollm2-int8 --schedules 200

Requests join and leave between steps, prompts are read in pieces beside rows that decode, begin
with what was read before, are speculated on and are cancelled; half of the schedules run on one
thread and half on two. Every row of logits is compared with that of the request alone, on one
thread. The exit status is 1 if a bit differs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

import gptx
from gptx.bench.machine import lines, machine
from gptx.parity.random_schedule import Difference, cases, run_schedule
from gptx.parity.reference import Reference
from gptx.progress import stage


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", nargs="?", type=Path, help="default: the model of gptx")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--requests", type=int, default=40, help="that schedules are made of")
    parser.add_argument("--longest", type=int, default=200, help="tokens of the longest prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after these")
    given = parser.parse_args()
    for line in lines(machine()):
        print(line)
    random = np.random.default_rng(given.seed)
    alone = gptx.load(given.artifact, threads=1, speculate=False)
    text = Reference.load(alone.path, alone.manifest.model).tokens.tolist()
    with alone, stage("Requests alone"):
        requests = cases(alone, text, random, given.requests, longest=given.longest)
    models = [gptx.load(given.artifact, threads=threads) for threads in (1, 2)]
    total, done, began = Difference(), 0, time.perf_counter()
    with stage("Schedules", total=given.schedules) as advance:
        while done < given.schedules and time.perf_counter() - began < 60 * given.minutes:
            one = run_schedule(models[done % 2], requests, random)
            total.compared += one.compared
            total.differing += one.differing
            done += 1
            advance(1)
    print(
        f"{done:,} schedules in {time.perf_counter() - began:,.0f} s, kernels"
        f" {models[0].kernels}: {total.compared:,} rows of logits compared,"
        f" {total.differing:,} differ in a bit"
    )
    for model in models:
        print(model.stats())
    sys.exit(1 if total.differing else 0)


if __name__ == "__main__":
    main()

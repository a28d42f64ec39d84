"""An hour of everything at once: 32 threads that join, cancel, time out and make mistakes.

    python benchmarks/soak.py --minutes 60

The engine must not hang, its memory must stay flat, and each greedy text that ends by itself must
be that of its prompt alone. The exit status is 1 otherwise. tests/runtime/engine/test_soak.py runs
a minute of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gptx
from gptx.bench.machine import lines, machine
from gptx.bench.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", nargs="?", type=Path, help="default: the model of gptx")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=32)
    given = parser.parse_args()
    print("\n".join(lines(machine("onnxruntime"))))
    with gptx.load(given.artifact, max_rows=8, cache_memory="64MB") as model:
        report = soak(model, seconds=60 * given.minutes, threads=given.threads, tell=print)
        print(report)
        print(model.stats())
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()

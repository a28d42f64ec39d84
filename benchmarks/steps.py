"""How long a step takes: one row, several rows, several tokens of one row.

    python benchmarks/steps.py smollm2-int8 --after 128

All steps are timed in one process by turns. Each gives the logits after all of its tokens. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

import gptx
from gptx.bench.machine import lines, machine
from table import table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--after", type=int, default=128, help="tokens that each row has read")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    found = machine("onnxruntime")
    print("\n".join(lines(found)))
    model = gptx.load(given.artifact, threads=given.threads)
    prompt = (
        np.random.default_rng(0)
        .integers(model.manifest.model.vocab_size, size=given.after)
        .tolist()
    )
    # rows, and tokens of each row in a step
    kinds = {(1, 1): "one row", (8, 1): "8 rows", (32, 1): "32 rows", (1, 8): "8 tokens of a row"}
    sessions = {rows: model.session(rows) for rows, _ in kinds}
    for rows, session in sessions.items():
        session.feed([prompt] * rows)
    times: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    for round_ in range(given.rounds + 2):
        for (rows, tokens), of_kind in times.items():
            session = sessions[rows]
            began = time.perf_counter()
            if tokens == 1:
                session.feed([prompt[:1]] * rows)
            else:
                session.feed([prompt[:tokens]] * rows, all_logits=True)
            took = time.perf_counter() - began
            session.rewind([given.after] * rows)
            if round_ >= 2:
                of_kind.append(took)
    medians = {kinds[kind]: statistics.median(of_kind) for kind, of_kind in times.items()}
    one = medians["one row"]
    lines_of = [(name, f"{1e3 * took:.2f}", f"{took / one:.2f}") for name, took in medians.items()]
    print(table(["a step of", "ms", "of one row"], lines_of))
    print(json.dumps({**found, "after": given.after, "seconds": medians}))


if __name__ == "__main__":
    main()

"""The time to the first token of a prompt: read, behind a stored beginning, and from the disk.

    python benchmarks/prefixes.py smollm2-int8 --tokens 1000

The prompt has --tokens tokens in front of 4 new ones. Medians of --rounds, by turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gptx
from gptx.bench.machine import lines, machine
from gptx.parity.reference import Reference
from table import table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = machine("onnxruntime")
    print("\n".join(lines(found)))
    model = gptx.load(given.artifact)
    text = Reference.load(model.path, model.manifest.model).tokens.tolist()
    prompt, times = text[: given.tokens + 4], {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefixes.safetensors"
        model.engine.forget()
        first_token(model, prompt[: given.tokens])
        model.save_prefixes(file)
        size = file.stat().st_size

        def read() -> None:
            model.engine.forget()

        def stored() -> None:
            model.engine.forget()
            model.load_prefixes(file)

        def on_disk() -> None:
            model.engine.forget()

        kinds: dict[str, tuple[Callable[[], None], bool]] = {
            "read": (read, False),
            "stored in memory": (stored, False),
            "loaded from the disk": (on_disk, True),
        }
        for _ in range(given.rounds):
            for name, (prepare, load) in kinds.items():
                prepare()
                began = time.perf_counter()
                if load:
                    model.load_prefixes(file)
                token = first_token(model, prompt)
                times.setdefault(name, []).append((time.perf_counter() - began, token))
    assert len({token for runs in times.values() for _, token in runs}) == 1
    medians = {name: statistics.median(took for took, _ in runs) for name, runs in times.items()}
    whole = medians["read"]
    rows = [[name, f"{1e3 * took:.1f}", f"{whole / took:.1f}"] for name, took in medians.items()]
    print(table([f"{given.tokens:,} tokens", "first token, ms", "times as fast"], rows))
    print(f"the file has {size / 1e6:.1f} MB")
    print(json.dumps({**found, "tokens": given.tokens, "seconds": medians, "bytes": size}))


def first_token(model: gptx.Model, prompt: list[int]) -> int:
    return model.generate(prompt, max_new_tokens=1, temperature=0).token_ids[0]


if __name__ == "__main__":
    main()

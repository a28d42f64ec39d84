"""Kill a training run at random points (SIGKILL) and resume it: does it give the undisturbed curve?

    python benchmarks/kill_training.py --kills 10

Half of the kills come after a random time. The others come the moment a file of the checkpoint or
of the training state begins to be written.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = (
    "steps=400 minutes=inf batch_size=4 vocab_size=300 eval_every=20"
    " model.n_layer=2 model.n_head=2 model.n_embd=64"
)
LONGEST = 300  # seconds that a run may take
MOMENTS = ("out.run/state.pt.part", ".out.*.part", ".out.*.old", ".out.*.part/model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text(
            "".join(f"Once there were {n} kings and {n % 13} queens.\n" for n in range(2000))
        )
        whole = folder / "whole"
        began = time.perf_counter()
        subprocess.run(command(text, whole), check=True, capture_output=True, timeout=LONGEST)
        seconds = time.perf_counter() - began
        kills, runs, same = 0, 0, True
        while kills < options.kills and runs < options.kills:
            runs += 1
            broken, alive = folder / f"broken{runs}", True
            while alive and kills < options.kills:
                moment = draw.choice(MOMENTS) if kills % 2 else draw.uniform(0.3 * seconds, seconds)
                alive = kill(command(text, broken), broken, moment)
                kills += alive
            subprocess.run(command(text, broken), check=True, capture_output=True, timeout=LONGEST)
            same &= curve(whole) == curve(broken) and weights(whole) == weights(broken)
    print(json.dumps({"kills": kills, "runs": runs, "same_curves_and_weights": same}))
    sys.exit(not same or kills < options.kills)


def command(text: Path, folder: Path) -> list[str]:
    changes = [part for setting in SETTINGS.split() for part in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "gptx",
        "train",
        str(text),
        "--out",
        str(folder / "out"),
        "--device",
        "cpu",
        *changes,
    ]


def kill(command: list[str], folder: Path, when: float | str) -> bool:
    """Start a run; kill it after some seconds or when a new file appears. True if it still ran."""
    before = set(folder.glob(when)) if isinstance(when, str) else set()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.perf_counter()
    while process.poll() is None:
        if (
            set(folder.glob(when)) - before
            if isinstance(when, str)
            else time.perf_counter() - began > when
        ):
            process.kill()
            break
    killed = process.wait() == -9
    print(f"killed at {when}" if killed else "it had ended before", file=sys.stderr)
    return killed


def curve(folder: Path) -> list[list[str]]:
    """The rows of metrics.csv without times."""
    with open(folder / "out.run/metrics.csv") as file:
        return [
            [value for name, value in row.items() if name != "seconds"]
            for row in csv.DictReader(file)
        ]


def weights(folder: Path) -> bytes:
    return (folder / "out/model.safetensors").read_bytes()


if __name__ == "__main__":
    main()

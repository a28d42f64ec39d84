"""gptx train in processes: two train like one, and a killed one resumes with the same losses."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.xdist_group("processes")  # one at a time: they take both cores

SETTINGS = (
    *(
        "steps=20",
        "batch_size=4",
        "vocab_size=300",
        "eval_every=5",
        "learning_rate=5e-3",
        "warmup=3",
    ),
    *("minutes=inf", 'optimizer="adamw"', 'schedule="cosine"', 'precision="fp32"'),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.n_ctx=16"),
)
ONE = [sys.executable, "-m", "gptx", "train"]
TWO = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "gptx",
    "train",
]
SECONDS = 120  # in which a hanging process is given up


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "tales.txt"
    lines = [
        f"Once there were {n} kings, and the {n % 7}th of them had a daughter.\n"
        for n in range(300)
    ]
    file.write_text("<|endoftext|>".join(lines), "utf-8")
    return file


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    return [str(text), "--out", str(out), "--device", "cpu", *changes, *more]


@pytest.fixture(scope="module")
def whole(text: Path) -> Path:
    out = text.parent / "whole"
    subprocess.run([*ONE, *arguments(text, out)], check=True, capture_output=True, timeout=SECONDS)
    return out


def curve(out: Path) -> list[list[float]]:
    """metrics.csv without the times."""
    with open(out.with_name(out.name + ".run") / "metrics.csv") as file:
        return [
            [float(v or 0) for k, v in row.items() if k != "seconds"]
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("more", [[], pytest.param(["--shard"], marks=pytest.mark.wide)])
def test_two_processes_train_like_one(more: list[str], text: Path, whole: Path, tmp_path: Path):
    done = subprocess.run(
        [*TWO, *arguments(text, tmp_path / "two", *more)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: gptx export") == 1  # only one of them prints
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(whole), rtol=2e-4)
    one, two = load_file(whole / "model.safetensors"), load_file(tmp_path / "two/model.safetensors")
    for name in one:
        np.testing.assert_allclose(
            two[name], one[name], atol=3e-3
        )  # AdamW enlarges what rounding did


def test_sharding_one_process_is_refused(text: Path, tmp_path: Path):
    done = subprocess.run(
        [*ONE, *arguments(text, tmp_path / "out", "--shard")],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 1 and "torchrun" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "written",
    [
        "*.run/state.pt.part",
        pytest.param("broken/config.json", marks=pytest.mark.wide),
        pytest.param("*.run/state.pt", marks=pytest.mark.wide),
        pytest.param(".broken.*.part", marks=pytest.mark.wide),
    ],
)
def test_a_killed_run_goes_on_with_the_same_losses(
    written: str, text: Path, whole: Path, tmp_path: Path
):
    """Killed as soon as a file appears that is written in the course of a checkpoint."""
    command = [*ONE, *arguments(text, tmp_path / "broken")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    while process.poll() is None and not any(tmp_path.glob(written)):
        assert time.monotonic() < end, f"no {written} appeared"
    process.kill()
    process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    assert curve(tmp_path / "broken") == curve(whole)
    one, two = (
        load_file(whole / "model.safetensors"),
        load_file(tmp_path / "broken/model.safetensors"),
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "broken.run"}

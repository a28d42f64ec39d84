"""The process ends although daemon threads compute: it neither aborts nor waits for their texts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.tiny_artifact import write_artifact

WAIT = 30.0  # seconds until a test gives up
USES = {
    "generate": "list(model.stream('the cat', max_new_tokens=19_000, on_token=begun))",
    "submit": "model.submit('the cat', max_new_tokens=19_000, on_token=begun).result()",
    "sleep in a callback": "model.generate('a', on_token=lambda *_: (begun(), time.sleep(999)))",
    "feed": "\n        ".join(
        ("session = model.session()", "while True: session.feed([[1, 2, 3]] if begun() else 0)")
    ),
    "load": "begun(); [gptx.load(path, threads=1) for _ in range(999)]",
}


@pytest.mark.parametrize("use", USES)
def test_the_process_ends(use: str, tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=20_000, eos=[])
    code = f"""
import threading, time
import gptx
path = {str(folder)!r}
model, inside = gptx.load(path, threads=1), threading.Event()
def begun(*_):
    inside.set()
    return True
def work():
    while True:
        {USES[use]}
threading.Thread(target=work, daemon=True).start()
inside.wait()
time.sleep(0.05)
"""
    began = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT
    )
    assert found.returncode == 0, found.stderr
    assert time.perf_counter() - began < WAIT / 2

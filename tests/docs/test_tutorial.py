"""The tutorial works: every command block of the page runs, in its order, on a small text.

Only the training is shortened, with the option that the page itself names for it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from builders.gptx_command import gptx

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
SHORTER = "--steps 20"
BLOCK = re.compile(r'^```(sh|python)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def write_text(file: Path) -> None:
    """A text of this repository's own, long enough for a training and its validation."""
    source = ROOT / "gpt_export" / "gpt_export"
    file.write_text(
        "".join((source / name).read_text("utf-8") for name in ("calibration.txt", "proof.txt"))
    )


def run_command(line: str) -> None:
    """gptx in this process, which has torch already; any other command in a shell."""
    if not line.startswith("gptx "):
        path = os.pathsep.join(str(ROOT / folder) for folder in ("runtime", "gpt_export", "models"))
        done = subprocess.run(
            line.replace("python ", f"{shlex.quote(sys.executable)} "),
            shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        assert len(done.stdout) > 20, (line, done.stdout)
        return
    words = shlex.split(line)[1:]
    outcome = gptx(*words, *(SHORTER.split() if words[0] == "train" else ()))
    assert outcome.status == 0, (line, outcome.err)
    if words[0] == "verify":
        assert "tales-int8: proved on this machine" in outcome.text.splitlines()


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"`{SHORTER}`" in PAGE
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "tales.txt")
    ran = []
    for kind, title, text in BLOCK.findall(PAGE):
        if kind == "python":
            (tmp_path / title).write_text(text)
            continue
        for line in text.splitlines():
            run_command(line)
            ran.append(line.split()[:2])
    assert [words[1] for words in ran if words[0] == "gptx"] == [
        "train", "export", "quantize", "verify", "run",
    ]  # fmt: skip
    assert ["echo", '"The'] in ran

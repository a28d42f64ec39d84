"""What the shell says: any text on any standard output, remarks that say what was probably not meant, and no escape
sequences where a terminal or a person wants none."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import pytest

from gptx import errors
from gptx_command import gptx, process
from tiny_artifact import refresh, write_artifact

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path has an accent, and its verbs print it."""
    return write_artifact(tmp_path_factory.mktemp("shell") / "modèle", template=TEMPLATE, n_ctx=512)


# Any text on any standard output


@pytest.mark.parametrize(
    "args",
    [
        ("run", "-n", "2", "--echo", "--chat", "-m"),
        ("run", "-n", "2", "--json", "-m"),
        ("score", "-m"),
        ("score", "--json", "-m"),
        ("classify", "--label", "é", "--label", "ü", "-m"),
        ("classify", "--label", "é", "--label", "ü", "--json", "-m"),
        ("summarize", "-n", "2", "-m"),
        ("inspect",),
        ("inspect", "--json"),
    ],
)
def test_standard_output_in_ascii(artifact: Path, args: tuple[str, ...]) -> None:
    """A pipe gets UTF-8, and a terminal its characters, with others as question marks."""
    text = () if args[0] == "inspect" else ("é à ü",)
    piped = gptx(*args, artifact, *text, encoding="ascii")
    assert piped.status == 0 and re.search("[éèü]|\N{REPLACEMENT CHARACTER}", piped.text)
    shown = gptx(*args, artifact, *text, encoding="ascii", terminal=True)
    assert shown.status == 0 and shown.out.isascii()


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    """Its bytes are escaped, as JSON reads them."""
    path = write_artifact(tmp_path / "model").rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    outcome = gptx("inspect", path, "--json")
    assert outcome.status == 0 and json.loads(outcome.text)["path"] == str(path)
    assert "mod\\udce8le" in gptx("inspect", path).text


def test_what_onnxruntime_says_does_not_reach_standard_output(artifact: Path, tmp_path: Path) -> None:
    """Its own words hold the graph's names, which here are not UTF-8: then it would print, and try again."""
    broken = write_artifact(tmp_path / "broken")
    graph = broken / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"GroupQueryAttention", b"GroupQuer\xffAttention"))
    refresh(broken)
    outcome = gptx("run", "-m", broken, "the cat")
    assert (outcome.status, outcome.out) == (1, b"")
    assert "cannot open it" in outcome.err and "GroupQuer" in outcome.err and outcome.err.count("\n") == 1


# Escape sequences


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}])
@pytest.mark.parametrize(
    "args", [("run", "-n", "2", "the", "-m"), ("chat", "-n", "2", "-m"), ("inspect",), ("doctor",)]
)
def test_no_escape_sequences(
    artifact: Path, args: tuple[str, ...], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = () if args[0] == "doctor" else (artifact,)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stdin = b"hello\n" if args[0] == "chat" else b""
    coloured = gptx(*args, *model, stdin=stdin, terminal=args[0] != "chat", err_terminal=True)
    assert ESCAPE in coloured.text + coloured.err
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plain = gptx(*args, *model, stdin=stdin, terminal=args[0] != "chat", err_terminal=True)
    assert plain.status == 0 and ESCAPE not in plain.text + plain.err


def test_no_moving_bar_on_a_dumb_terminal(fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    outcome = gptx("verify", fp32, terminal=True, err_terminal=True)
    assert "Verifying" in outcome.err and ESCAPE not in outcome.text + outcome.err


def test_a_real_terminal_that_is_dumb(artifact: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs pseudo terminals")
    ours, theirs = pty.openpty()
    started = process("run", "-m", artifact, "the", "-n", "2", stdin=theirs, stdout=theirs, stderr=theirs, TERM="dumb")
    os.close(theirs)
    assert started.wait(60) == 0
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"2 tokens at" in shown and ESCAPE.encode() not in shown


# Warnings


def test_a_warning_is_shown_with_the_apps_own_line() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        errors.warn("mind the gap")
    assert [(str(one.message), one.category, one.filename) for one in seen] == [
        ("mind the gap", errors.GptxWarning, __file__)
    ]

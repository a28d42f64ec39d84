"""The command line in any shell: encodings, escape sequences, warnings, hints on mistakes."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

import gptx as api
from builders.gptx_command import gptx, process
from builders.tiny_artifact import refresh, write_artifact
from gptx import errors

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose path has an accent, which several verbs print."""
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
    """A pipe gets UTF-8. A terminal shows a question mark for a character that it lacks."""
    text = () if args[0] == "inspect" else ("é à ü",)
    piped = gptx(*args, artifact, *text, encoding="ascii")
    assert piped.status == 0 and re.search("[éèü]|\N{REPLACEMENT CHARACTER}", piped.text)
    shown = gptx(*args, artifact, *text, encoding="ascii", terminal=True)
    assert shown.status == 0 and shown.out.isascii()


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    """Bytes of a path that are not UTF-8 are escaped, so that JSON readers get them back."""
    path = write_artifact(tmp_path / "model").rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    outcome = gptx("inspect", path, "--json")
    assert outcome.status == 0 and json.loads(outcome.text)["path"] == str(path)
    assert "mod\\udce8le" in gptx("inspect", path).text


def test_what_onnxruntime_says_does_not_reach_standard_output(
    artifact: Path, tmp_path: Path
) -> None:
    """ONNX Runtime prints a message because the graph's names are not UTF-8 here."""
    broken = write_artifact(tmp_path / "broken")
    graph = broken / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"GroupQueryAttention", b"GroupQuer\xffAttention"))
    refresh(broken)
    outcome = gptx("run", "-m", broken, "the cat")
    assert (outcome.status, outcome.out) == (1, b"")
    assert (
        "cannot open it" in outcome.err
        and "GroupQuer" in outcome.err
        and outcome.err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "args", ["--version", "--help", "run --help", "completion bash", "train --list"]
)
def test_a_full_disk_is_one_sentence(args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builders.gptx_command.Stream.write", full)
    said: list[str] = []
    monkeypatch.setattr("gptx.cli.fail", said.append)
    assert gptx(*args.split()).status == 1
    assert len(said) == 1 and "No space left on device" in said[0]


# Escape sequences


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}])
@pytest.mark.parametrize(
    "args", [("run", "-n", "2", "the", "-m"), ("chat", "-n", "2", "-m"), ("inspect",), ("doctor",)]
)
def test_no_escape_sequences(
    artifact: Path,
    args: tuple[str, ...],
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
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
    started = process(
        "run",
        "-m",
        artifact,
        "the",
        "-n",
        "2",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        TERM="dumb",
    )
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


DRAWING = {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 3}


@pytest.mark.parametrize("name", DRAWING)
def test_an_option_of_drawing_where_nothing_is_drawn(artifact: Path, name: str) -> None:
    """transformers warns of the same, for instance of top_k without do_sample."""
    model = api.load(artifact)
    given: dict[str, Any] = {name: DRAWING[name], "max_new_tokens": 1}
    calls = [model.generate, model.stream, model.summarize, model.chat().stream]
    for call in calls:
        with pytest.warns(
            api.GptxWarning, match=f"^{name} has no effect: .* unless temperature is given"
        ):
            call("the cat", **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call("the cat", **given, temperature=0.7)
            call("the cat", **given, temperature=0)
            call("the cat", max_new_tokens=1, top_k=0, top_p=1.0, min_p=0)
    outcome = gptx(
        "run",
        "-m",
        artifact,
        "the",
        "-n",
        "2",
        f"--{name.replace('_', '-')}",
        str(DRAWING[name]),
        "--quiet",
    )
    assert outcome.status == 0 and outcome.err.startswith(f"gptx: {name} has no effect")
    assert outcome.err.count("\n") == 1


def test_a_model_that_samples_by_itself_takes_them(tmp_path: Path) -> None:
    model = api.load(write_artifact(tmp_path / "a", generation={"do_sample": True}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("the cat", max_new_tokens=1, top_k=5, seed=1)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "the", "--batch-size", "3"), "--batch-size does nothing without --batch"),
        (
            ("quantize", "a", "b", "--to", "fp16", "--calibration", "c"),
            "--calibration is what 8 and 4 bits are fitted to",
        ),
    ],
)
def test_options_that_do_nothing_alone(args: tuple[str, ...], says: str) -> None:
    outcome = gptx(*args)
    assert outcome.status in (1, 2) and says in outcome.err and outcome.err.count("\n") == 1


# Names of files, and files of texts


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("classify", "--label", "a", "--label", "b", "a b.txt"),
            "--file 'a b.txt' reads the file",
        ),
        (("summarize", "-n", "1", "a b.txt"), "--file 'a b.txt' reads the file"),
        (("score", "a b.txt"), "--file 'a b.txt' reads the file"),
        (("run", "-n", "1", "a b.txt"), "gptx run < 'a b.txt' reads the file"),
        (
            ("run", "-n", "1", "--chat", "--system", "a b.txt", "hi"),
            """--system "$(cat 'a b.txt')" reads the file""",
        ),
        (
            ("chat", "-n", "1", "--system", "a b.txt"),
            """--system "$(cat 'a b.txt')" reads the file""",
        ),
        (
            ("summarize", "--template", "a b.txt", "hi"),
            """--template "$(cat 'a b.txt')" reads the file""",
        ),
    ],
)
def test_a_text_that_is_a_files_name(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = gptx(*args, "-m", artifact, "--device", "cpu")
    assert "hint" not in outcome.err.replace("hint: this is a chat model", "")
    (tmp_path / "a b.txt").write_text("the cat")
    hinted = gptx(*args, "-m", artifact)
    assert hinted.status == outcome.status and says in hinted.err
    assert args[0] not in ("score", "classify") or hinted.out == outcome.out  # it is only a hint
    if "--file" in says:
        assert (
            gptx(*args[:-1], "--file", "a b.txt", "-m", artifact).out
            == gptx(*args[:-1], "the cat", "-m", artifact).out
        )


@pytest.mark.parametrize("source", ["texts.txt", "-"])
def test_an_empty_line_keeps_its_place(artifact: Path, tmp_path: Path, source: str) -> None:
    lines, labels = "the cat\n\n \nthe log\n", ("--label", "cat", "--label", "dog")
    (tmp_path / "texts.txt").write_text(lines)
    file = source if source == "-" else tmp_path / source
    outcome = gptx("classify", "-m", artifact, *labels, "--file", file, stdin=lines.encode())
    found = [
        one.label for one in api.load(artifact).classify(["the cat", "the log"], ["cat", "dog"])
    ]
    assert (outcome.status, outcome.text.split("\n")) == (1, [found[0], "", "", found[1], ""])
    assert (
        outcome.err == "gptx: 2 lines, of which line 2 is the first, are empty and got no label;"
        " the others did\n"
    )
    as_json = gptx(
        "classify", "-m", artifact, *labels, "--json", "--file", file, stdin=lines.encode()
    )
    results = [json.loads(line) for line in as_json.text.splitlines()]
    assert [one.get("label") for one in results] == [found[0], None, None, found[1]]
    assert results[2] == {"text": " ", "error": "the line is empty"}
    none = gptx("classify", "-m", artifact, *labels, "--file", "-", stdin=b"\n\n")
    assert none.err.endswith("are empty and got no label\n")
    assert (
        gptx("classify", "-m", artifact, *labels, "--file", "-").err
        == "gptx: standard input holds no line to classify\n"
    )


def test_an_empty_text_is_called_a_text(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert (
        "the text is empty" in gptx("score", "-m", artifact, "--file", tmp_path / "empty.txt").err
    )
    assert "the text is empty" in gptx("score", "-m", artifact, "").err
    assert "the text is empty" in gptx("classify", "-m", artifact).err


def test_results_come_before_the_next_line_is_asked_for(artifact: Path) -> None:
    started = process(
        "classify",
        "-m",
        artifact,
        "--label",
        "a",
        "--label",
        "b",
        "--file",
        "-",
        stdin=subprocess.PIPE,
    )
    assert started.stdin is not None and started.stdout is not None
    started.stdin.write(b"the cat\n")
    started.stdin.flush()
    assert started.stdout.readline().strip() in (b"a", b"b")
    started.stdout.close()  # whoever reads has enough
    started.communicate(b"the dog\nthe log\n" * 1000, timeout=60)
    assert started.returncode == 0


def test_a_terminal_gets_no_orders_from_a_strangers_words(artifact: Path, tmp_path: Path) -> None:
    labels = ("--label", "a\x1b[2J", "--label", "b\x1b[2J")
    shown = gptx("classify", "-m", artifact, "the cat", *labels, terminal=True)
    assert shown.status == 0 and ESCAPE not in shown.text and "[2J" in shown.text
    assert ESCAPE in gptx("classify", "-m", artifact, "the cat", *labels).text
    outcome = gptx("inspect", tmp_path / "a\x1b[2J\nb")
    assert ESCAPE not in outcome.err and outcome.err.count("\n") == 1

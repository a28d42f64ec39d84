"""The command gptx: table of verbs, imports, failures, shell completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from builders.gptx_command import COMMAND, environment, finished, gptx, process
from builders.tiny_artifact import write_artifact
from gptx.cli import VERBS, group


def test_help_names_every_verb() -> None:
    outcome = gptx("--help")
    assert outcome.status == 0
    assert all(verb in outcome.text for verb in VERBS)


def test_no_verb_shows_the_help_and_fails() -> None:
    outcome = gptx()
    assert outcome.status == 2
    assert "Commands:" in outcome.err


def test_version_names_onnxruntime_and_the_processor() -> None:
    from gptx.system.cpu import cpu_name

    line = gptx("--version").text
    assert line.startswith("gptx ") and "onnxruntime" in line and line.endswith(f"{cpu_name()}\n")


@pytest.mark.parametrize(
    "args", [("nonsense",), ("run", "--nonsense"), ("completion", "tcsh"), ("run", "-n", "x", "a")]
)
def test_a_usage_error_is_one_line_and_status_2(args: tuple[str, ...]) -> None:
    outcome = gptx(*args)
    assert (outcome.status, outcome.out) == (2, b"")
    assert (
        outcome.err.startswith("gptx: ")
        and outcome.err.count("\n") == 1
        and "--help)" in outcome.err
    )


def test_a_verb_whose_package_is_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(VERBS, "export", ("no_such_package.cli:export", ""))
    outcome = gptx("export", "--anything", "in", "out")
    assert outcome.status == 1
    assert "needs the package no_such_package" in outcome.err and "[export]" in outcome.err


def imported_by(*args: str, tmp_path: Path) -> set[str]:
    """Names of the modules that a process has imported when the command ends."""
    names = tmp_path / "modules"
    code = (
        "import atexit, sys; sys.argv[0] = 'gptx'\n"
        f"atexit.register(lambda: open({str(names)!r}, 'w').write('\\n'.join(sys.modules)))\n"
        "from gptx.cli import main; main()"
    )
    subprocess.run(
        [sys.executable, "-c", code, *args], env=environment(), stdin=subprocess.DEVNULL, check=True
    )
    return set(names.read_text().split("\n"))


def test_help_and_run_import_little(tmp_path: Path) -> None:
    heavy = {
        "torch",
        "transformers",
        "onnx",
        "rich",
        "jinja2",
        "pygments",
        "gpt_export",
        "gptx_models",
    }
    assert not imported_by("--help", tmp_path=tmp_path) & (
        heavy | {"numpy", "onnxruntime", "tokenizers"}
    )
    artifact = write_artifact(tmp_path / "artifact")
    assert not imported_by("run", "-m", str(artifact), "the", "-n", "2", tmp_path=tmp_path) & heavy


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    outcome = gptx("completion", shell)
    assert outcome.status == 0 and "_GPTX_COMPLETE" in outcome.text


def completed(words: str) -> list[str]:
    env = {
        **environment(),
        "_GPTX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, check=True)
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


def test_completion_completes_verbs_options_and_values() -> None:
    assert completed("gptx ex") == ["export"]
    assert "--temperature" in completed("gptx run --te")
    assert completed("gptx run --device c") == ["cpu", "cuda"]


def test_completing_a_verb_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    monkeypatch.setattr(group, "get_command", None)
    found = group.shell_complete(click.Context(group), "")
    assert [item.value for item in found] == list(VERBS)


def test_a_closed_pipe_is_silent() -> None:
    started = process("inspect", "--help")
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    assert started.stderr.read() == b""
    started.wait(60)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    with open("/dev/full", "wb") as full:
        outcome = finished(process("inspect", artifact, stdout=full))
    assert outcome.status == 1
    assert outcome.err == "gptx: cannot write to standard output: No space left on device\n"


def test_a_missing_choice_is_one_line() -> None:
    outcome = gptx("quantize", "A", "B")
    assert outcome.status == 2 and outcome.err.count("\n") == 1


@pytest.mark.parametrize(("package", "extra"), [("tokenizers", "cpu"), ("jinja2", "cpu")])
def test_a_package_that_is_missing_while_a_verb_runs(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_artifact(tmp_path / "artifact", template="{{ messages[0]['content'] }}")
    monkeypatch.setitem(sys.modules, package, None)
    outcome = gptx("run", "-m", artifact, "the cat", "--chat")
    assert (
        outcome.status == 1
        and f"gptx run needs the package {package}" in outcome.err
        and f"[{extra}]" in outcome.err
    )


_LOADING = """
import os, signal
from gptx.cli import VERBS, group, main

@group.command()
def load():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except SystemExit as error:  # as pybind11 does
        raise ImportError("initialization failed") from error

VERBS["load"] = ("__main__:load", "")
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_while_an_extension_module_is_loaded_is_no_error() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LOADING, "load"], capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_into_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = gptx(verb, "--help")
    assert outcome.status == 0 and max(map(len, outcome.text.splitlines())) <= 80

"""gptx chat, through a pipe and at a pseudo terminal: Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

import gptx as api
from builders.gptx_command import finished, gptx, process
from builders.tiny_artifact import write_artifact

pty = pytest.importorskip("pty", reason="needs pseudo terminals")

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
N_CTX = 20_000
FOREVER = ("-n", str(N_CTX), "--min-new-tokens", str(N_CTX))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(
        tmp_path_factory.mktemp("chat") / "chatty", template=TEMPLATE, n_ctx=N_CTX
    )


def answers(artifact: Path, *messages: str, system: str | None = None) -> str:
    talk = api.load(artifact).chat(system=system)
    return "".join(
        (talk.send(message, max_new_tokens=8).text or "").rstrip("\n") + "\n"
        for message in messages
    )


def test_a_pipe_is_a_message_a_line(artifact: Path) -> None:
    outcome = gptx(
        "chat",
        "-m",
        artifact,
        "-n",
        "8",
        "--system",
        "be brief",
        stdin="hello\n\nand é then\r\n".encode(),
    )
    assert (outcome.status, outcome.text) == (
        0,
        answers(artifact, "hello", "and é then", system="be brief"),
    )
    assert outcome.err.count("length reached") == 2
    assert gptx("chat", "-m", artifact, "-n", "8", "--quiet", stdin=b"hello").err == ""


def test_commands(artifact: Path) -> None:
    lines = b"hello\n/reset\nhello\n/nonsense\n/help\n/exit\nnever read\n"
    outcome = gptx("chat", "-m", artifact, "-n", "8", stdin=lines)
    assert (outcome.status, outcome.text) == (0, answers(artifact, "hello") * 2)
    assert (
        "started over" in outcome.err
        and "/nonsense is not a command" in outcome.err
        and "Ctrl-C" in outcome.err
    )


def test_bytes_that_are_no_text(artifact: Path) -> None:
    outcome = gptx("chat", "-m", artifact, "-n", "8", stdin=b"hello\nab\xff\n")
    assert (
        outcome.status == 1
        and "standard input is not UTF-8 text: byte 0xff at offset 8" in outcome.err
    )
    assert outcome.text == answers(artifact, "hello")


def test_without_a_template(tmp_path: Path) -> None:
    outcome = gptx("chat", "-m", write_artifact(tmp_path / "plain"), stdin=b"hello\n")
    assert (
        outcome.status == 1 and "no chat template" in outcome.err and outcome.err.count("\n") == 1
    )


def test_a_full_context(tmp_path: Path) -> None:
    small = write_artifact(tmp_path / "small", template=TEMPLATE, n_ctx=48)
    outcome = gptx("chat", "-m", small, "--min-new-tokens", "48", stdin=b"hello\nagain\n")
    assert "the context is full: /reset starts over" in outcome.err
    assert outcome.status == 1 and "context holds 48" in outcome.err


def test_a_chat_may_outgrow_the_context(tmp_path: Path) -> None:
    small = write_artifact(tmp_path / "small", template=TEMPLATE, n_ctx=48)
    asked = ("chat", "-m", small, "-n", "20", "--min-new-tokens", "20", "--overflow", "slide")
    outcome = gptx(*asked, stdin=b"hello\nagain\nand on\n")
    assert outcome.status == 0 and outcome.err.count("length reached") == 3


def test_ctrl_c_in_a_pipe_ends_it(artifact: Path) -> None:
    started = process("chat", "-m", artifact, *FOREVER, stdin=subprocess.PIPE)
    assert started.stdin is not None and started.stdout is not None
    started.stdin.write(b"hello\n")
    started.stdin.flush()
    started.stdout.read(20)
    started.send_signal(signal.SIGINT)
    outcome = finished(started)
    assert outcome.status == 130 and outcome.out.endswith(b"\n") and "Traceback" not in outcome.err


class Terminal:
    """A command at a pseudo terminal. `wait_for` reads what it shows."""

    def __init__(self, *args: str | Path) -> None:
        ours, theirs = pty.openpty()
        self.fd, self.seen = ours, ""
        self.process = process(*args, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, pattern: str, *, seconds: float = 30) -> str:
        """Everything shown since the last match, up to the end of this match."""
        until = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen, re.DOTALL)):
            if time.monotonic() > until or not select.select([self.fd], [], [], seconds)[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


def test_a_conversation_at_a_terminal(artifact: Path) -> None:
    terminal = Terminal("chat", "-m", artifact, *FOREVER)
    try:
        assert "/help lists the commands" in terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("hello\r\n.{40}")  # some of the answer
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("interrupted")
        terminal.wait_for("> ")
        time.sleep(0.3)  # readline shows its prompt before it waits for signals
        terminal.process.send_signal(signal.SIGINT)  # at the prompt: a new line
        terminal.wait_for("> ")
        terminal.type("again\n")
        terminal.wait_for("again\r\n.{40}")
        terminal.process.send_signal(signal.SIGINT)
        assert "prompt of" in terminal.wait_for("interrupted")
        terminal.wait_for("> ")
        terminal.type("\x04")  # Ctrl-D
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


def test_an_interrupted_answer_stays_in_the_conversation(artifact: Path) -> None:
    """Ctrl-C stops an answer between two steps; pressed twice, it interrupts a step.

    Then the chat opens a new cache.
    """
    from gptx.cli.chat import _reopened

    model = api.load(artifact)
    whole = model.chat()
    stream = whole.stream("hello", max_new_tokens=50)
    next(stream)
    stream.close()
    again = _reopened(model, whole)
    assert again.messages == whole.messages and len(again.messages) == 2
    assert (
        again.send("more", max_new_tokens=8).token_ids
        == whole.send("more", max_new_tokens=8).token_ids
    )

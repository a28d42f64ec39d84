"""Run the command gptx from a test.

In this process, which is quick, or in one of its own, for tests of signals, pipes and imports.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from gptx.cli import main; main()"]


@dataclass(frozen=True)
class Outcome:
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


class Stream(io.TextIOWrapper):
    """Standard input or output in memory. terminal: the result of isatty()."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal


def gptx(
    *args: str | Path,
    stdin: bytes | None = b"",
    terminal: bool = False,
    err_terminal: bool = False,
    encoding: str = "utf-8",
) -> Outcome:
    """Run main() in this process.

    stdin: its bytes; None: closed. terminal: standard input and output are a terminal.
    err_terminal: standard error is a terminal. encoding: that of standard output.
    """
    out = Stream(io.BytesIO(), encoding=encoding)
    err = Stream(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    err.terminal = err_terminal
    given = None if stdin is None else Stream(io.BytesIO(stdin), encoding="utf-8")
    out.terminal = terminal
    if given is not None:
        given.terminal = terminal
    from gptx.cli import main

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["gptx", *map(str, args)]))
        stack.enter_context(mock.patch.object(sys, "stdin", given))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            main()
            status: Any = 0
        except SystemExit as error:
            status = error.code or 0
    return Outcome(int(status), held(out), held(err).decode())


def held(stream: Stream) -> bytes:
    stream.flush()
    return stream.buffer.getvalue()  # type: ignore[attr-defined]


def process(
    *args: str | Path,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    **variables: str,
) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own. variables: of its environment.

    SIGINT reaches it even if the tests run in the background.
    """
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment() | variables,
        preexec_fn=_default_signals,
    )


def finished(
    started: subprocess.Popen[bytes], *, given: bytes | None = None, timeout: float = 60
) -> Outcome:
    try:
        out, err = started.communicate(given, timeout=timeout)
    except subprocess.TimeoutExpired:
        started.kill()
        raise
    return Outcome(started.returncode, out or b"", (err or b"").decode())


def environment() -> dict[str, str]:
    folders = os.pathsep.join(str(ROOT / name) for name in ("runtime", "gpt_export", "models"))
    return {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

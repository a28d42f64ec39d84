"""Read a prompt: from the argument, from standard input, from both, or as token ids.

This file knows no model.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from gptx.cli.output import note
from gptx.errors import PromptError, UsageError

NOTICE_AFTER = 2.0  # seconds without data on a pipe, until a notice says what gptx waits for
SOCKET_WAIT = 1.0  # seconds to wait for data on a socket


def read_prompt(argument: str | None, name: str = "the prompt") -> str:
    """The argument, or standard input, or both with an empty line between them.

    Standard input is read if the argument is `-` or missing, and also beside an argument if
    something is piped. Line ends at its end are dropped, so `echo Once upon a time | gptx run`
    continues that line.

    name: what messages call the prompt. Raises PromptError if it is empty or not UTF-8.
    """
    if argument is not None and argument != "-":
        prompt = checked(argument, name)
        if not prompt:
            raise PromptError(f"{name} is empty")
        piped = _read_stdin() if _something_piped() else ""
        return f"{prompt}\n\n{piped}" if piped else prompt
    if argument is None and _is_terminal():
        raise click.UsageError(f"{name} is missing: give it as an argument, or pipe it in")
    piped = _read_stdin()
    if not piped:
        raise PromptError(f"{name} is empty: standard input held no text")
    return piped


def hint_of_a_file(text: str | None, instead: str) -> None:
    """Print a hint if a text is the name of a file, whose text was probably meant.

    instead: the command line that reads the file.
    """
    if text is not None and os.path.isfile(text):
        note(f"hint: {text} is a file, and its name is taken as the text: {instead} reads the file")


def read_lines(source: str) -> list[str]:
    """The lines of a text file, or of standard input for `-`. Raises UsageError, PromptError."""
    if source == "-":
        text = decoded(_stdin_bytes(), "standard input")
    else:
        try:
            text = decoded(Path(source).read_bytes(), source)
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error.strerror}") from error
    lines = text.split("\n")  # not splitlines(), which also cuts at form feeds and U+2028
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def lines_of_stdin() -> Iterator[str]:
    """Yield the lines of standard input when they arrive."""
    stream, offset = _stdin(), 0
    for line in stream or ():
        yield decoded(line, "standard input", offset=offset).rstrip("\r\n")
        offset += len(line)


def parse_tokens(text: str, name: str = "--tokens") -> list[int]:
    """Token ids, separated by commas or spaces; `-` reads them from standard input.

    Raises PromptError.
    """
    if text == "-":
        text = decoded(_stdin_bytes(), "standard input")
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if wrong is not None:
        raise PromptError(f"{name} takes token ids such as 1,2,3, and {wrong!r} is none")
    if not words:
        raise PromptError(f"{name} holds no token id")
    return [int(word) for word in words]


def decoded(data: bytes, name: str, *, offset: int = 0) -> str:
    """UTF-8 bytes as text, without a byte order mark. Raises PromptError if they are not UTF-8.

    name, offset: where the bytes come from, and at which offset there, for the message.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, data[error.start]
        raise PromptError(
            f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {at} ({error.reason})"
        ) from None
    return text if offset else text.removeprefix("\ufeff")


def checked(text: str, name: str) -> str:
    """A text of the command line. Raises PromptError if it was not UTF-8.

    (Python keeps such bytes of an argument as lone surrogates.)
    """
    try:
        return decoded(text.encode("utf-8", "surrogateescape"), name)
    except UnicodeEncodeError as error:  # Windows keeps half a UTF-16 pair
        raise PromptError(
            f"{name} is not text: half a character at position {error.start}"
        ) from None


def _read_stdin() -> str:
    return decoded(_stdin_bytes(), "standard input").rstrip("\r\n")


def _stdin_bytes() -> bytes:
    stream = _stdin()
    return stream.read() if stream is not None else b""


def _stdin() -> IO[bytes] | None:
    """Standard input; None if it is closed, by `<&-` in a shell or by a service manager."""
    return None if sys.stdin is None or sys.stdin.closed else sys.stdin.buffer


def _is_terminal() -> bool:
    return _stdin() is not None and sys.stdin.isatty()


def _something_piped() -> bool:
    """Whether standard input holds something for the model, in addition to the prompt argument.

    - Files and pipes: yes. A pipe's writer may be slow (`make 2>&1 | gptx run "What failed?"`), so
      gptx waits for its end, and says so after NOTICE_AFTER seconds.
    - Sockets: only if something arrives within SOCKET_WAIT seconds. Node's child_process and sshd
      connect a socket even if nothing will be sent.
    - Terminals, /dev/null, other devices, and a closed standard input: no.
    """
    stream = _stdin()
    if stream is None:
        return False
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except OSError:  # not a real file, but an object of a test or a notebook
        return not sys.stdin.isatty()
    if stat.S_ISREG(kind) or os.name == "nt":
        return not sys.stdin.isatty()
    if stat.S_ISSOCK(kind):
        return bool(select.select([stream], [], [], SOCKET_WAIT)[0])
    if not stat.S_ISFIFO(kind):
        return False
    if not select.select([stream], [], [], NOTICE_AFTER)[0]:
        click.echo(
            "gptx: waiting for the end of standard input"
            " (close it with < /dev/null if there is none)",
            err=True,
        )
    return True

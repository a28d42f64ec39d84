"""Where the prompt comes from: the argument, standard input, both, or token ids. Nothing here knows a model."""

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

NOTICE_AFTER = 2.0  # seconds of silence on a pipe until we say what we wait for
SOCKET_WAIT = 1.0  # seconds that a socket has, see _something_piped


def read_prompt(argument: str | None, name: str = "the prompt") -> str:
    """What is called `name`: the argument; or standard input for `-` or no argument; or both, with an empty line between.

    Line ends at the end of standard input are dropped: `echo Once upon a time | gptx run` goes on in that line.
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
    """Say so where a text is the name of a file, which was probably meant to be read."""
    if text is not None and os.path.isfile(text):
        note(f"hint: {text} is a file, and its name is taken as the text: {instead} reads the file")


def read_lines(source: str) -> list[str]:
    """The lines of a text file, or of standard input for `-`."""
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
    """The lines of standard input as they come."""
    stream, offset = _stdin(), 0
    for line in stream or ():
        yield decoded(line, "standard input", offset=offset).rstrip("\r\n")
        offset += len(line)


def parse_tokens(text: str, name: str = "--tokens") -> list[int]:
    """Token ids with commas or spaces between; `-` reads them from standard input."""
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
    """UTF-8 to text, without a byte order mark. `offset`: of these bytes in what is called `name`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, data[error.start]
        raise PromptError(
            f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {at} ({error.reason})"
        ) from None
    return text if offset else text.removeprefix("\ufeff")


def checked(text: str, name: str) -> str:
    """Text of the command line, where Python keeps bytes that are not UTF-8 as lone surrogates."""
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
    return (
        None if sys.stdin is None or sys.stdin.closed else sys.stdin.buffer
    )  # None: closed by <&- or a service


def _is_terminal() -> bool:
    return _stdin() is not None and sys.stdin.isatty()


def _something_piped() -> bool:
    """Whether standard input is to be read although a prompt was given as well.

    A file or a pipe is; /dev/null, other devices and a closed one are not. A pipe that stays silent is waited for, as
    its writer may be slow (`make 2>&1 | gptx run "What failed?"`), and a notice says so. A socket is what Node's
    child_process and sshd put there without meaning anything by it, so that one must show something within a second.
    """
    stream = _stdin()
    if stream is None:
        return False
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except OSError:  # not a real file: a test's or a notebook's
        return not sys.stdin.isatty()
    if stat.S_ISREG(kind) or os.name == "nt":
        return not sys.stdin.isatty()
    if stat.S_ISSOCK(kind):
        return bool(select.select([stream], [], [], SOCKET_WAIT)[0])
    if not stat.S_ISFIFO(kind):
        return False
    if not select.select([stream], [], [], NOTICE_AFTER)[0]:
        click.echo(
            "gptx: waiting for the end of standard input (close it with < /dev/null if there is none)",
            err=True,
        )
    return True

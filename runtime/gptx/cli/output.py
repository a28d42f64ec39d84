"""Standard output and standard error of all verbs: text, JSON lines, remarks, errors, next steps.

Control characters in text from outside do not reach a terminal. On a terminal, prose is wrapped to
its width; commands and errors are not wrapped, because people copy them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import click

from gptx.errors import OutputError
from gptx.progress import color_system, without_control_characters

if TYPE_CHECKING:
    from gptx.generation.transcript import Completion
    from gptx.model import Model

# Characters at which some readers end a line (str.splitlines at U+2028, for instance) and which
# json.dumps does not escape. json.dumps itself escapes the control characters below a space.
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")


def set_up_streams() -> None:
    """Let standard output take any text, whatever the locale's encoding is.

    A pipe or a file gets UTF-8 and unchanged newlines; a lone surrogate, from a file name that is
    not UTF-8, is written as its escape, which JSON reads back. A terminal that lacks a character
    shows a question mark.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None:  # a notebook's stream is no file
        return
    if sys.stdout.isatty():
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="backslashreplace", newline="")


class Printer:
    """Writes pieces of text as they come and ends them with exactly one newline.

    Use it in a `with` block. A block that fails before its first piece writes nothing at all.
    """

    def __init__(self) -> None:
        self._newlines = ""  # held back: only the newlines that text follows are written
        self._wrote = False

    def write(self, piece: str) -> None:
        piece = printable(piece)
        text = (self._newlines + piece).rstrip("\n")
        self._newlines = (self._newlines + piece)[len(text) :]
        if text:
            self._put(text)

    def _put(self, text: str) -> None:
        self._wrote = True
        write_out(text)

    def __enter__(self) -> Printer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if kind is None or interrupted or (self._wrote and not isinstance(error, OSError)):
            self._put("\n")


def printable(text: str) -> str:
    """`text` for standard output. On a terminal, control characters are removed."""
    return without_control_characters(text.replace("\r", "")) if sys.stdout.isatty() else text


def write_out(text: str) -> None:
    """Write to standard output and flush.

    Raises BrokenPipeError when the reader has closed the pipe, and OutputError for every other
    failure (a full disk).
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def write_prose(text: str) -> None:
    """Write lines of prose to standard output, wrapped between words on a terminal."""
    write_out(_fitted(printable(text), sys.stdout) + "\n")


def write_next(command: str) -> None:
    """Write the most common next step, as one line that can be pasted."""
    write_out(f"next: {printable(command)}\n")


def write_json_line(facts: Mapping[str, Any]) -> None:
    """Write one JSON object as one line. Characters at which a reader may end it are escaped."""
    line = json.dumps(facts, ensure_ascii=False)
    write_out(_LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n")


def finite(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(text: str) -> None:
    """Write a remark to standard error. A coloured terminal shows it dim."""
    if sys.stderr.isatty():
        text = _fitted(without_control_characters(text), sys.stderr)
    click.echo(click.style(text, dim=True) if color_system() else text, err=True)


def fail(text: str) -> None:
    """Write an error or a warning to standard error as one line, without control characters."""
    click.echo(f"gptx: {without_control_characters(' '.join(text.splitlines()))}", err=True)


def terminal_width(stream: IO[str]) -> int:
    """Columns of the terminal behind `stream`, 80 if they are unknown; COLUMNS overrides both."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def wrap(text: str, width: int) -> list[str]:
    """Lines of whole words; a word longer than `width` (a path) stays whole on one line."""
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _fitted(text: str, stream: IO[str]) -> str:
    if not stream.isatty():
        return text
    width = terminal_width(stream)
    return "\n".join(line for part in text.split("\n") for line in wrap(part, width))


_END_REASONS = {
    "stop": "end of text",
    "length": "length reached",
    "context": "context full",
    "time": "out of time",
    "closed": "interrupted",
}


def figures(completion: Completion, *, interrupted: bool = False) -> str:
    """One line on a completion: tokens, speed, why it ended, and the seed that repeats it."""
    n, rate = len(completion.token_ids), completion.tokens_per_second
    parts = [
        f"{n} token{'s' * (n != 1)}" + (f" at {rate:.1f} tokens/s" if rate > 0 else ""),
        f"the first after {completion.time_to_first_token:.2f} s",
        f"prompt of {completion.prompt_tokens}",
        "interrupted" if interrupted else _END_REASONS[completion.finish_reason or "closed"],
    ]
    if completion.seed is not None:
        parts.append(f"seed {completion.seed}")
    return ", ".join(parts)


def result(model: Model, completion: Completion) -> dict[str, Any]:
    """The JSON object of a completion, for --json and --batch."""
    return dataclasses.asdict(completion) | {
        "new_tokens": len(completion.token_ids),
        "artifact": str(model.path),
        "provider": model.provider,
    }

"""How generated text reaches standard output, and the line of figures that goes to standard error. Nothing here knows
where the text comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from gptx.errors import OutputError
from gptx.progress import color_system, without_orders

if TYPE_CHECKING:
    from gptx.generation.stream import Completion
    from gptx.model import Model

_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")  # JSON escapes the ones below a space itself


def set_up_streams() -> None:
    """Let standard output take any text, whatever the locale says.

    A pipe or a file gets UTF-8, byte for byte; half a character (of a file's name that is not UTF-8) is written as its
    escape, which JSON reads back. A terminal that lacks a character shows a question mark.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None:  # not a real file: a notebook's
        return
    if sys.stdout.isatty():
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="backslashreplace", newline="")


class Printer:
    """Writes pieces of text at once, and ends them with exactly one newline, whatever newlines the text ended with.

    Use it in a `with` block. When the block fails before anything was written, nothing is.
    """

    def __init__(self) -> None:
        self._newlines = ""  # seen, and not written until something follows them
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
    """Without what a terminal would obey, where standard output is one."""
    return without_orders(text.replace("\r", "")) if sys.stdout.isatty() else text


def write_out(text: str) -> None:
    """Write to standard output now. A closed pipe stays a BrokenPipeError; a full disk becomes an OutputError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def write_json_line(facts: Mapping[str, Any]) -> None:
    """One object on one line, for every idea of what a line is: U+2028 ends one to str.splitlines, say."""
    line = json.dumps(facts, ensure_ascii=False)
    write_out(_LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n")


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(text: str) -> None:
    """A remark on standard error; dim on a terminal with colours, so that it is not taken for the model's text."""
    text = without_orders(text) if sys.stderr.isatty() else text
    click.echo(click.style(text, dim=True) if color_system() else text, err=True)


def fail(text: str) -> None:
    """An error or a warning on standard error, as one line, whatever a file's name or a stranger's file puts into it."""
    click.echo(f"gptx: {without_orders(' '.join(text.splitlines()))}", err=True)


_ENDS = {
    "stop": "end of text",
    "length": "length reached",
    "context": "context full",
    "closed": "interrupted",
}


def figures(completion: Completion, *, interrupted: bool = False) -> str:
    """One line: how much, how fast, why it ended, and the seed that draws it again."""
    n, rate = len(completion.token_ids), completion.tokens_per_second
    parts = [
        f"{n} token{'s' * (n != 1)}" + (f" at {rate:.1f} tokens/s" if rate > 0 else ""),
        f"the first after {completion.time_to_first_token:.2f} s",
        f"prompt of {completion.prompt_tokens}",
        "interrupted" if interrupted else _ENDS[completion.finish_reason or "closed"],
    ]
    if completion.seed is not None:
        parts.append(f"seed {completion.seed}")
    return ", ".join(parts)


def result(model: Model, completion: Completion) -> dict[str, Any]:
    """What --json and --batch say of one completion."""
    return dataclasses.asdict(completion) | {
        "new_tokens": len(completion.token_ids),
        "artifact": str(model.path),
        "provider": model.provider,
    }

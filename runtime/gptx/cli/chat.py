"""gptx chat: a conversation in the terminal, or through a pipe, a message a line. The cache is kept between turns.

Answers go to standard output; the prompt sign, figures and remarks to standard error.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

import gptx
from gptx.cli.options import model_options, sampling_options
from gptx.cli.output import Printer, figures, note
from gptx.cli.prompt import checked, hint_of_a_file, lines_of_stdin
from gptx.errors import PromptError
from gptx.generation.options import Given

if TYPE_CHECKING:
    from gptx.model import Model
    from gptx.tasks.chat import Chat

HELP = """/reset  start over    /exit  leave (or Ctrl-D)    /help  this
Ctrl-C stops an answer; what was written of it stays in the conversation."""
SIGN = "> "


@click.command()
@model_options
@sampling_options
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--quiet", is_flag=True, help="No figures after an answer.")
def chat(
    artifact: Path | None,
    device: str,
    threads: int | None,
    sampling: Given,
    system: str | None,
    quiet: bool,
) -> None:
    """A conversation in the terminal; what was said stays in the model's cache.

    Piped in, every line is a message, and standard output is the answers. /help lists the commands.
    """
    if system is not None:
        system = checked(system, "--system")
        hint_of_a_file(system, f'--system "$(cat {shlex.quote(system)})"')
    model = gptx.load(artifact, device=device, threads=threads)
    talk = model.chat(system=system)
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        note(f"{model.path.resolve().name} on {model.provider}; /help lists the commands")
    for message in _typed() if interactive else lines_of_stdin():
        if message.startswith("/"):
            if not _obey(message.strip(), talk):
                return
        elif message.strip():
            try:
                talk, interrupted = _answer(model, talk, message, sampling, quiet=quiet)
            except PromptError as error:
                if not interactive:
                    raise
                note(f"gptx: {error}; /reset starts over")
                continue
            if interrupted and not interactive:
                sys.exit(130)


def _obey(command: str, talk: Chat) -> bool:
    """Do what a line that begins with / says; False to leave."""
    if command in ("/exit", "/quit", "/bye"):
        return False
    if command == "/reset":
        talk.reset()
        note("started over")
    elif command == "/help":
        note(HELP)
    else:
        note(f"{command.split()[0]} is no command\n{HELP}")
    return True


def _answer(
    model: Model, talk: Chat, message: str, sampling: Given, *, quiet: bool
) -> tuple[Chat, bool]:
    """Print the answer as it comes. Returns the conversation to go on with, and whether Ctrl-C was pressed."""
    stream = talk.stream(message, **sampling)
    with _ctrl_c() as pressed:
        try:
            with Printer() as printer:
                for piece in stream:
                    printer.write(piece)
                    if pressed:
                        break
            stream.close()
        except KeyboardInterrupt:
            stream.close()
            talk = _reopened(model, talk)
    completion = stream.completion
    if not quiet and completion.token_ids:
        note(figures(completion, interrupted=bool(pressed)))
    if completion.finish_reason == "context":
        note("the context is full: /reset starts over")
    return talk, bool(pressed)


def _reopened(model: Model, talk: Chat) -> Chat:
    """The same conversation with a new cache, which the next turn fills."""
    fresh = model.chat()
    fresh.messages = talk.messages
    return fresh


@contextmanager
def _ctrl_c() -> Iterator[list[bool]]:
    """Yields a list that Ctrl-C makes true. It waits for the step that is going on, so that the cache stays in order;
    pressed again, it is a KeyboardInterrupt, in the middle of whatever that is."""
    pressed: list[bool] = []

    def handle(_: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _typed() -> Iterator[str]:
    """Messages from the keyboard, until Ctrl-D. Ctrl-C drops the line."""
    with suppress(ImportError):  # line editing and history, where Python has them
        import readline  # noqa: F401
    sign = SIGN
    if not sys.stdout.isatty():  # keep standard output to the answers
        sign = ""
    while True:
        try:
            if not sign:
                click.echo(SIGN, nl=False, err=True)
            yield checked(input(sign), "the message")
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
        except (PromptError, UnicodeDecodeError) as error:
            note(f"gptx: {error}")

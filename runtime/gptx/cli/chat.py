"""gptx chat: a conversation in the terminal, or through a pipe with one message per line.

Answers go to standard output; the prompt sign, figures and notes go to standard error.
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

from gptx.cli.open_model import open_model
from gptx.cli.options import draft_option, model_options, sampling_options
from gptx.cli.output import Printer, figures, note
from gptx.cli.prompt import checked, hint_of_a_file, lines_of_stdin
from gptx.errors import PromptError
from gptx.generation.option_keywords import Keywords

if TYPE_CHECKING:
    from gptx.model import Model
    from gptx.tasks.chat import Chat

HELP = """/reset  start over    /exit  leave (or Ctrl-D)    /help  show this
Ctrl-C stops an answer; its text so far stays in the conversation."""
SIGN = "> "


@click.command()
@model_options
@draft_option
@sampling_options
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--quiet", is_flag=True, help="Print no figures after an answer.")
def chat(
    artifact: Path | None,
    device: str,
    threads: int | None,
    draft: Path | None,
    sampling: Keywords,
    system: str | None,
    quiet: bool,
) -> None:
    """Talk with a chat model in the terminal.

    Each turn computes only the new tokens. If standard input is piped, every line is a message, and
    standard output has the answers. /help lists the commands.
    """
    if system is not None:
        system = checked(system, "--system")
        hint_of_a_file(system, f'--system "$(cat {shlex.quote(system)})"')
    model = open_model(artifact, device=device, threads=threads, draft=draft, sampling=sampling)
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
    """Run a command, a line that begins with /. Returns False if the user wants to leave."""
    if command in ("/exit", "/quit", "/bye"):
        return False
    if command == "/reset":
        talk.reset()
        note("started over")
    elif command == "/help":
        note(HELP)
    else:
        note(f"{command.split()[0]} is not a command\n{HELP}")
    return True


def _answer(
    model: Model, talk: Chat, message: str, sampling: Keywords, *, quiet: bool
) -> tuple[Chat, bool]:
    """Print the answer while it is generated.

    Returns the conversation to go on with, and whether Ctrl-C was pressed.
    """
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
        note("the context is full: /reset starts over; gptx chat --overflow slide goes on")
    return talk, bool(pressed)


def _reopened(model: Model, talk: Chat) -> Chat:
    """The same conversation with an empty KV cache, which the next turn fills."""
    fresh = model.chat()
    fresh.messages = talk.messages
    return fresh


@contextmanager
def _ctrl_c() -> Iterator[list[bool]]:
    """Yields a list that is empty until Ctrl-C is pressed.

    The first Ctrl-C does not interrupt the running step, so the KV cache stays valid. A second
    Ctrl-C raises KeyboardInterrupt at once.
    """
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
    """Yield messages from the keyboard until Ctrl-D. Ctrl-C drops the line."""
    with suppress(ImportError):  # line editing and history, if Python was built with readline
        import readline  # noqa: F401
    # input() writes its prompt to standard output, which must hold nothing but answers if it is
    # redirected.
    sign = SIGN if sys.stdout.isatty() else ""
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

"""Decorators for options that several commands share: the model, and text generation.

A command gets the options of text generation as one dict, `sampling`, with the keywords of
Model.stream. The dict holds only options that were given. This file does not know the defaults.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gptx.cli.prompt import checked
from gptx.generation.option_kinds import BREAKERS, TEXTS
from gptx.generation.options import SPECS, flags

device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to compute. cuda fails if CUDA cannot be used; auto falls back to the CPU.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads (default: all)."
)
draft_option = click.option(
    "--draft",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="A smaller model of the same vocabulary guesses tokens where that is faster. The text does"
    " not change.",
)
_artifact_option = click.option(
    "-m",
    "--model",
    "artifact",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="Folder that gptx export or quantize wrote (default: the model that ships with gptx).",
)

# Keywords of a call that are no fields of `Options` (gptx.engine.control)
_CONTROL = {
    "negative_prompt": click.option(
        "--negative-prompt",
        metavar="TEXT",
        help="What --guidance-scale pushes the text away from (default: the prompt's last token).",
    ),
    "max_time": click.option(
        "--max-time",
        type=float,
        metavar="SECONDS",
        help="End the text after this time, with what was generated so far.",
    ),
    "overflow": click.option(
        "--overflow",
        type=click.Choice(["stop", "slide"]),
        help="When the context is full: end the text (stop, the default), or go on with the newest"
        " tokens (slide); a chat then leaves out its oldest turns.",
    ),
}


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -m/--model (`artifact`: Path | None), --device and --threads."""
    return _artifact_option(device_option(threads_option(command)))


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `Options` that is on the command line, and for _CONTROL.

    The command gets those that were given as a dict, `sampling`.
    """
    names = [name for name, spec in SPECS.items() if spec.on_command_line]

    @functools.wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in (*names, *_CONTROL)}
        for name in names:
            if _is_repeatable(name):
                flag = flags(name)[-1]
                given[name] = [unescape(checked(text, flag)) for text in given[name]] or None
        sampling = {name: value for name, value in given.items() if value is not None}
        return command(*args, sampling=sampling, **kwargs)

    for option in reversed([*map(_click_option, names), *_CONTROL.values()]):
        collected = option(collected)
    return collected


def _click_option(name: str) -> Callable[..., Any]:
    spec = SPECS[name]
    return click.option(
        *flags(name),
        type=spec.kind.shell,
        multiple=_is_repeatable(name),
        metavar=spec.metavar,
        help=spec.help,
    )


def _is_repeatable(name: str) -> bool:
    return SPECS[name].kind in (TEXTS, BREAKERS)


def was_given(name: str) -> bool:
    """Whether the user wrote this option on the command line (its default does not count)."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_without(other: str, *names: str) -> None:
    """Raise click.UsageError if an option of `names` was given, because it needs `other`, too."""
    given = next((f"--{name.replace('_', '-')}" for name in names if was_given(name)), None)
    if given is not None:
        raise click.UsageError(f"{given} does nothing without {other}: give both, or neither")


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""Replace the escapes \n, \t, \r and \\, which let a shell user write those characters.

    Any other backslash stays.
    """
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)

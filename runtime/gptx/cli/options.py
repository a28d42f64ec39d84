"""The options that several verbs share, each written once: which artifact on which device, and how to sample.

A decorator here hands the command one value (`sampling`, the keywords of Model.stream that were given). Defaults are
not known here: an option that was not given is left to the artifact's generation_config.json.
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
from gptx.generation.options import Given

_SAMPLING = [
    click.option(
        "-n", "--max-new-tokens", type=int, metavar="N", help="Stop after so many tokens."
    ),
    click.option(
        "--min-new-tokens", type=int, metavar="N", help="Do not end the text before so many tokens."
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        help="0: always the likeliest token; 1: as the model says.",
    ),
    click.option(
        "--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens (0: from all)."
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Draw from the likeliest tokens that make up P (1: all).",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        help="Leave out tokens less likely than P times the likeliest.",
    ),
    click.option("--repetition-penalty", type=float, metavar="R", help="Over 1: repeat less."),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="Draw the same text again; without it one is drawn and reported.",
    ),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help=r"End before this text; \n, \t, \r and \\ are read. Repeatable.",
    ),
]


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to compute; cuda fails where it cannot, auto takes the CPU then.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads (default: all)."
)
_artifact_option = click.option(
    "-m",
    "--model",
    "artifact",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="Folder that gptx export or quantize wrote (default: the model that ships with gptx).",
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -m/--model (`artifact`: Path | None), --device and --threads."""
    return _artifact_option(device_option(threads_option(command)))


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the sampling options; the command gets those that were given as one dict, `sampling`."""

    @functools.wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in Given.__annotations__ if name in kwargs}
        given["stop"] = [unescape(checked(text, "--stop")) for text in given["stop"]] or None
        sampling = {name: value for name, value in given.items() if value is not None}
        return command(*args, sampling=sampling, **kwargs)

    for option in reversed(_SAMPLING):
        collected = option(collected)
    return collected


def was_given(name: str) -> bool:
    """Whether an option of the command that runs stands on the command line; its default does not count."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_without(other: str, *names: str) -> None:
    """Raise UsageError for the first of these options that was given: it does nothing without `other`."""
    given = next((f"--{name.replace('_', '-')}" for name in names if was_given(name)), None)
    if given is not None:
        raise click.UsageError(f"{given} does nothing without {other}: give both, or neither")


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""Read \n, \t, \r and \\, which are awkward to type in a shell; any other backslash stays as it is."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)

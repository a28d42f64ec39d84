"""The options that several verbs share, each written once: which artifact on which device, and how to sample.

A decorator here hands the command one value (`sampling`, a dict of what was given) in place of many. Defaults are
not known here: an option that was not given is left to the artifact's generation_config.json.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import click


class Sampling(TypedDict, total=False):
    """The keywords of Model.generate and Model.stream, those of them that were given."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: list[str]


_SAMPLING = [
    click.option("-n", "--max-new-tokens", type=int, metavar="N", help="Stop after so many tokens."),
    click.option("--min-new-tokens", type=int, metavar="N", help="Do not end the text before so many tokens."),
    click.option("--temperature", type=float, metavar="T", help="0: always the likeliest token; 1: as the model says."),
    click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens (0: from all)."),
    click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens that make up P (1: all)."),
    click.option("--min-p", type=float, metavar="P", help="Leave out tokens less likely than P times the likeliest."),
    click.option("--repetition-penalty", type=float, metavar="R", help="Over 1: repeat less."),
    click.option("--seed", type=int, metavar="N", help="Draw the same text again; without it one is drawn and reported."),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help=r"End before this text; \n, \t, \r and \\ are read. Repeatable."
    ),
]


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to compute; cuda fails where it cannot, auto takes the CPU then.",
)
threads_option = click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads (default: all).")
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
        given = {name: value for name in Sampling.__annotations__ if (value := kwargs.pop(name)) is not None}
        given["stop"] = [unescape(text) for text in given["stop"]]
        if not given["stop"]:
            del given["stop"]
        return command(*args, sampling=given, **kwargs)

    for option in reversed(_SAMPLING):
        collected = option(collected)
    return collected


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""Read \n, \t, \r and \\, which are awkward to type in a shell; any other backslash stays as it is."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)

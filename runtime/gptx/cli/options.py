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
from gptx.generation.option_kinds import TEXTS
from gptx.generation.options import SPECS, OptionSpec

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
    """Add an option for each field of `Options`; the command gets those given as a dict, `sampling`."""
    names = [name for name, spec in SPECS.items() if spec.on_command_line]

    @functools.wraps(command)
    def collected(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in names}
        given["stop"] = [unescape(checked(text, "--stop")) for text in given["stop"]] or None
        sampling = {name: value for name, value in given.items() if value is not None}
        return command(*args, sampling=sampling, **kwargs)

    for name in reversed(names):
        collected = _click_option(name, SPECS[name])(collected)
    return collected


def _click_option(name: str, spec: OptionSpec) -> Callable[..., Any]:
    flags = [spec.letter] if spec.letter else []
    return click.option(
        *flags,
        f"--{name.replace('_', '-')}",
        type=spec.kind.shell,
        multiple=spec.kind is TEXTS,
        metavar=spec.metavar,
        help=spec.help,
    )


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

"""The options that export and quantize share: cache, proof text, limits, --force, --dry-run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from gptx.errors import UsageError

cache_type_option = click.option(
    "--cache-type",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Keys and values on native operators.  [default: fp16 if weights are rounded, else fp32]",
)


def proof_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that export and quantize share."""
    options = [
        cache_type_option,
        click.option(
            "--text",
            type=click.Path(path_type=Path),
            help="Proof text, a UTF-8 file.  [default: our own page]",
        ),
        click.option(
            "--limit",
            "limit",
            multiple=True,
            metavar="NAME=VALUE",
            help="Override a limit, e.g. kl_mean=0.02.",
        ),
        click.option(
            "--accept",
            is_flag=True,
            help="Write it even outside the limits; the certificate says so.",
        ),
        click.option("--force", is_flag=True, help="Replace OUT if it is there."),
        click.option(
            "--dry-run", is_flag=True, help="Print what it takes (disk, memory) and stop."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def parse_limits(given: tuple[str, ...]) -> dict[str, float]:
    """The values of --limit, by name. Raises UsageError if one is not NAME=NUMBER."""
    limits = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--limit {entry}: expected NAME=VALUE with a number, for example kl_mean=0.02"
            ) from None
    return limits

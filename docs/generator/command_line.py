"""The reference of the command line, made from click: usage, help and options of each verb."""

from __future__ import annotations

import textwrap

import click

from generator.markdown import definition, escaped
from gptx.cli import VERBS, group


def page() -> str:
    return "\n".join(_verb(verb) for verb in VERBS)


def _verb(name: str) -> str:
    context = click.Context(group, info_name="gptx")
    command = group.get_command(context, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=context)
    usage = " ".join(["gptx", name, *command.collect_usage_pieces(context)])
    options = [part for part in command.params if isinstance(part, click.Option)]
    return "\n".join(
        [
            f"## gptx {name}\n",
            f"```text\n{usage}\n```\n",
            _help(command.help or ""),
            *(_option(option, context) for option in options if not option.hidden),
        ]
    )


def _help(text: str) -> str:
    """Paragraphs as text; those that click is told not to wrap (\\b) as they stand."""
    parts = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        first, _, rest = paragraph.strip("\n").partition("\n")
        if first.strip() == "\b":
            parts.append(f"```text\n{textwrap.dedent(rest)}\n```")
        else:
            parts.append(escaped(" ".join(paragraph.split())))
    return "\n\n".join(parts) + "\n"


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    return definition(record[0], escaped(" ".join(record[1].split())))

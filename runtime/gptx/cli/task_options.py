"""Shared by the commands of tasks: the options of few-shot prompts, and the text to work on."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gptx.artifact.json_files import parse_json
from gptx.cli.options import unescape
from gptx.cli.output import note
from gptx.cli.prompt import checked, hint_of_a_file, read_lines, read_prompt
from gptx.errors import UsageError

Examples = list[tuple[str, str]]


def few_shot(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --example, --examples and --template. The command gets `examples` and `template`."""

    @functools.wraps(command)
    def collected(
        *args: Any,
        example: tuple[str, ...],
        examples_file: Path | None,
        template: str | None,
        **kwargs: Any,
    ) -> Any:
        examples = [_pair(text) for text in example]
        examples += _read_examples(examples_file) if examples_file else []
        if template is not None:
            hint_of_a_file(template, f'--template "$(cat {shlex.quote(template)})"')
            template = unescape(checked(template, "--template"))
        return command(*args, examples=examples, template=template, **kwargs)

    for option in (
        click.option(
            "--template",
            metavar="TEXT",
            help="The prompt, with {text} in it (default: the model's own).",
        ),
        click.option(
            "--examples",
            "examples_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Examples for the prompt, one JSON object per line: "
            '{"text": ..., "label" or "summary": ...}.',
        ),
        click.option(
            "--example",
            multiple=True,
            metavar="TEXT=>ANSWER",
            help="An example for the prompt. Repeatable.",
        ),
    ):
        collected = option(collected)
    return collected


def _pair(text: str) -> tuple[str, str]:
    """(text, answer) of a TEXT=>ANSWER argument. Raises UsageError."""
    question, arrow, answer = checked(text, "--example").rpartition("=>")
    if not arrow or not question.strip() or not answer.strip():
        raise UsageError(
            f'--example is {text!r:.80}, expected TEXT=>ANSWER, such as "A fine film.=>positive"'
        )
    return question.strip(), answer.strip()


def _read_examples(file: Path) -> Examples:
    """The examples in a JSONL file. Raises UsageError."""
    pairs: Examples = []
    for number, line in enumerate(read_lines(str(file)), 1):
        if not line.strip():
            continue
        record = parse_json(line, f"{file}, line {number}", UsageError)
        try:
            answer = record["label"] if "label" in record else record["summary"]
            pairs.append((str(record["text"]), str(answer)))
        except (KeyError, TypeError) as error:
            expected = '{"text": ..., "label" or "summary": ...}'
            raise UsageError(
                f"{file}, line {number} is not an example: expected {expected}"
            ) from error
    return pairs


def text_of(text: str | None, source: str | None) -> str:
    """The text of the argument, of the file `source`, or of standard input."""
    if source is None:
        hint_of_a_file(text, f"--file {shlex.quote(text or '')}")
        return read_prompt(text, "the text")
    if text is not None:
        raise UsageError("give either TEXT or --file, not both")
    return "\n".join(read_lines(source))


def note_left_out(counts: list[int]) -> None:
    """Print a note if texts were cut. counts: the tokens that were cut from each text."""
    cut = [count for count in counts if count]
    if cut:
        which = f"{len(cut)} of {len(counts)} texts are" if len(counts) > 1 else "the text is"
        note(f"{which} longer than the model's context: {sum(cut)} tokens at the end were cut off")

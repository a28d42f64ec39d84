"""gptx classify, summarize and score: run a task on one text, or on each line of a file."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.cli.options import model_options, sampling_options
from gptx.cli.output import Printer, printable, write_json_line, write_out
from gptx.cli.prompt import hint_of_a_file, lines_of_stdin, read_lines, read_prompt
from gptx.cli.table import print_table
from gptx.cli.task_options import Examples, few_shot, note_left_out, text_of
from gptx.errors import PromptError, UsageError

if TYPE_CHECKING:
    from gptx.tasks.classify import Classification


@click.command()
@click.argument("text", required=False)
@model_options
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="LABEL",
    help="A label to choose from. Repeat it for each label (default: the model's own).",
)
@click.option(
    "--file", "source", metavar="FILE", help="Classify each line of a file (- is standard input)."
)
@few_shot
@click.option(
    "--calibrate",
    is_flag=True,
    help="Correct for the labels that the prompt alone prefers (Zhao et al. 2021).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per text.")
def classify(
    text: str | None,
    *,
    artifact: Path | None,
    device: str,
    threads: int | None,
    labels: tuple[str, ...],
    source: str | None,
    template: str | None,
    examples: Examples,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Choose the label that fits TEXT best.

    A language model scores each label by its log-probability; a classification head computes a
    value for each. Give --example or --examples for few-shot prompts. Without TEXT, standard input
    is read.

    Prints the label, or with --json all probabilities. If several labels may be right, or the
    values are no probabilities (regression, reward models), every label is printed with its value.
    """
    import gptx
    from gptx.tasks.classify import classify_each

    lines = _texts(text, source)
    current = ""
    left_out: list[int] = []  # of each text, the tokens that were cut off
    empty: list[int] = []  # numbers of empty lines

    def texts() -> Iterator[str]:
        nonlocal current
        for number, current in enumerate(lines, 1):
            if current.strip():
                yield current
            else:
                empty.append(number)
                _print_result({"text": current, "error": "the line is empty"} if as_json else "")

    with gptx.load(artifact, device=device, threads=threads) as model:
        for result in classify_each(
            model,
            texts(),
            labels or None,
            examples=examples,
            template=template,
            calibrate=calibrate,
        ):
            left_out.append(result.left_out)
            _print_result(
                {"text": current, **dataclasses.asdict(result)} if as_json else _in_words(result)
            )
    note_left_out(left_out)
    if empty:
        others = "; the others did" if left_out else ""
        raise PromptError(f"{_lines_in_words(empty)} empty and got no label{others}")
    if not left_out:
        raise UsageError(
            f"{'standard input' if source == '-' else source} holds no line to classify"
        )


def _lines_in_words(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    return f"{len(numbers)} lines, of which line {numbers[0]} is the first, are"


def _texts(text: str | None, source: str | None) -> Iterable[str]:
    """The text of the argument, or the lines of `source` (of standard input when they arrive)."""
    if source is None:
        hint_of_a_file(text, f"--file {shlex.quote(text or '')}")
        whole = read_prompt(text, "the text")
        if not whole.strip():
            raise PromptError("the text is empty: give a text to classify")
        return [whole]
    if text is not None:
        raise UsageError("give either TEXT or --file, not both")
    return lines_of_stdin() if source == "-" else read_lines(source)


def _print_result(result: dict[str, Any] | str) -> None:
    if isinstance(result, str):
        write_out(f"{printable(result)}\n")
    else:
        write_json_line(result)


def _in_words(result: Classification) -> str:
    """The label; every label with its value if several may be right."""
    if result.problem_type == "single_label_classification":
        return result.label
    return ", ".join(f"{label} {value:.4f}" for label, value in result.probabilities.items())


@click.command()
@click.argument("text", required=False)
@model_options
@click.option("--file", "source", metavar="FILE", help="Summarize the text of a file.")
@few_shot
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def summarize(
    text: str | None,
    *,
    artifact: Path | None,
    device: str,
    threads: int | None,
    source: str | None,
    template: str | None,
    examples: Examples,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    """Summarize TEXT, standard input, or a file.

    Decoding is greedy unless --temperature is given.
    """
    import gptx

    whole = text_of(text, source)
    with gptx.load(artifact, device=device, threads=threads) as model:
        summary = model.summarize(whole, examples=examples, template=template, **sampling)
    note_left_out([summary.left_out])
    if as_json:
        write_json_line(dataclasses.asdict(summary))
    else:
        with Printer() as printer:
            printer.write(summary.text or "")


@click.command()
@click.argument("text", required=False)
@model_options
@click.option("--file", "source", metavar="FILE", help="Score the text of a file.")
@click.option(
    "--overlap",
    type=click.IntRange(min=1),
    metavar="N",
    help="For long texts: tokens that windows share (default: half of the context).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def score(
    text: str | None,
    *,
    artifact: Path | None,
    device: str,
    threads: int | None,
    source: str | None,
    overlap: int | None,
    as_json: bool,
) -> None:
    """Print the log-probability of each token of a text.

    The text is TEXT, standard input, or a file. Each token is judged by all tokens in front of it.
    The last line has the sum, the perplexity and the bits per byte.
    """
    import gptx

    whole = text_of(text, source)
    with gptx.load(artifact, device=device, threads=threads) as model:
        result = model.score(whole, overlap=overlap)
    if as_json:
        write_json_line(dataclasses.asdict(result))
        return
    pieces = result.pieces or [str(token) for token in result.token_ids]
    rows = [
        (json.dumps(piece, ensure_ascii=False), "" if value is None else f"{value:.3f}")
        for piece, value in zip(pieces, result.logprobs)
    ]
    print_table(rows, header=("token", "log-probability"))
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.3f} bits a byte"
    write_out(f"sum {result.total:.3f}, perplexity {result.perplexity:.2f}{bits}\n")

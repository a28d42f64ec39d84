"""gptx classify, summarize and score: a model's tasks from the command line, one text or a file of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.artifact.json_files import parse_json
from gptx.cli.options import model_options, sampling_options, unescape
from gptx.cli.output import Printer, note, printable, write_json_line, write_out
from gptx.cli.prompt import checked, hint_of_a_file, lines_of_stdin, read_lines, read_prompt
from gptx.cli.table import print_table
from gptx.errors import PromptError, UsageError

if TYPE_CHECKING:
    from gptx.tasks.classify import Classification

Examples = list[tuple[str, str]]


def _few_shot(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --example, --examples and --template; the command gets `examples` and `template`."""

    @functools.wraps(command)
    def collected(
        *args: Any, example: tuple[str, ...], examples_file: Path | None, **kwargs: Any
    ) -> Any:
        examples = [_pair(text) for text in example] + (
            _read(examples_file) if examples_file else []
        )
        if kwargs["template"] is not None:
            hint_of_a_file(
                kwargs["template"], f'--template "$(cat {shlex.quote(kwargs["template"])})"'
            )
            kwargs["template"] = unescape(checked(kwargs["template"], "--template"))
        return command(*args, examples=examples, **kwargs)

    for option in (
        click.option(
            "--template",
            metavar="TEXT",
            help="What is asked, with {text} in it (default: the model's own).",
        ),
        click.option(
            "--examples",
            "examples_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help='Examples for the prompt, one JSON object a line: {"text": ..., "label" or "summary": ...}.',
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
    question, arrow, answer = checked(text, "--example").rpartition("=>")
    if not arrow or not question.strip() or not answer.strip():
        raise UsageError(
            f'--example is {text!r:.80}, expected TEXT=>ANSWER, such as "A fine film.=>positive"'
        )
    return question.strip(), answer.strip()


def _read(file: Path) -> Examples:
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
            raise UsageError(f"{file}, line {number} is no example: expected {expected}") from error
    return pairs


@click.command()
@click.argument("text", required=False)
@model_options
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="LABEL",
    help="One of the labels; give each (default: the model's own).",
)
@click.option(
    "--file", "source", metavar="FILE", help="Classify each line of a file (- is standard input)."
)
@_few_shot
@click.option(
    "--calibrate", is_flag=True, help="Take away what the prompt alone prefers (Zhao et al. 2021)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a text.")
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
    """Say which label fits TEXT, by the log-probability of each label or by the model's classification head.

    Zero-shot as it is; --example and --examples make it few-shot. Without TEXT standard input is read. Prints the label;
    with --json all probabilities. Of a head that judges each label by itself, or that computes values (regression, reward
    models), every label is printed with its value.
    """
    import gptx
    from gptx.tasks.classify import classify_each

    lines = _texts(text, source)
    asked = ""
    left_out: list[int] = []
    empty: list[int] = []

    def texts() -> Iterator[str]:
        nonlocal asked
        for number, asked in enumerate(lines, 1):
            if asked.strip():
                yield asked
            else:
                empty.append(number)
                _print_result({"text": asked, "error": "the line is empty"} if as_json else "")

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
                {"text": asked, **dataclasses.asdict(result)} if as_json else _in_words(result)
            )
    _say_left_out(left_out)
    if empty:
        which = (
            f"line {empty[0]} is"
            if len(empty) == 1
            else f"{len(empty)} lines, of which line {empty[0]} is the first, are"
        )
        raise PromptError(
            f"{which} empty and got no label" + ("; the others did" if left_out else "")
        )
    if not left_out:
        raise UsageError(
            f"{'standard input' if source == '-' else source} holds no line to classify"
        )


def _texts(text: str | None, source: str | None) -> Iterable[str]:
    """TEXT, or the lines of --file; those of standard input as they come."""
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
    if result.problem_type == "single_label_classification":
        return result.label
    return ", ".join(f"{label} {value:.4f}" for label, value in result.probabilities.items())


@click.command()
@click.argument("text", required=False)
@model_options
@click.option("--file", "source", metavar="FILE", help="Summarize the text of a file.")
@_few_shot
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
    """Summarize TEXT, or standard input, or a file. Greedy unless --temperature is given."""
    import gptx

    whole = _text_of(text, source)
    with gptx.load(artifact, device=device, threads=threads) as model:
        summary = model.summarize(whole, examples=examples, template=template, **sampling)
    _say_left_out([summary.left_out])
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
    help="Tokens that windows of a long text share.",
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
    """Print the log-probability of each token of TEXT (or of standard input, or a file) after those before it."""
    import gptx

    whole = _text_of(text, source)
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


def _text_of(text: str | None, source: str | None) -> str:
    if source is None:
        hint_of_a_file(text, f"--file {shlex.quote(text or '')}")
        return read_prompt(text, "the text")
    if text is not None:
        raise UsageError("give either TEXT or --file, not both")
    return "\n".join(read_lines(source))


def _say_left_out(counts: list[int]) -> None:
    cut = [count for count in counts if count]
    if cut:
        which = f"{len(cut)} of {len(counts)} texts are" if len(counts) > 1 else "the text is"
        note(f"{which} longer than the model's context: {sum(cut)} tokens at the end were left out")

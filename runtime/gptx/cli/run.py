"""gptx run: a prompt in, the text that continues it on standard output, figures on standard error.

prompt.py reads the prompt, output.py prints the text, and batch.py runs a file of prompts.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from gptx.artifact.json_files import parse_json
from gptx.cli.batch import run_lines
from gptx.cli.open_model import open_model
from gptx.cli.options import draft_option, model_options, refuse_without, sampling_options
from gptx.cli.output import Printer, figures, note, result, write_json_line
from gptx.cli.prompt import checked, hint_of_a_file, parse_tokens, read_lines, read_prompt
from gptx.errors import UsageError
from gptx.generation.option_keywords import Keywords
from gptx.generation.options import MAX_NEW_TOKENS
from gptx.generation.resolve_options import limits_length

if TYPE_CHECKING:
    from gptx.engine.stream import Stream
    from gptx.model import Model


@click.command()
@click.argument("prompt", required=False)
@model_options
@draft_option
@sampling_options
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--system", metavar="TEXT", help="The system message, with --chat.")
@click.option(
    "--tokens",
    metavar="IDS",
    help="Token ids as the prompt: 1,2,3 (- reads them from standard input).",
)
@click.option(
    "--batch",
    metavar="FILE",
    help="Run each line of FILE as a prompt (- is standard input); print a JSON object for each.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="With --batch: lines that are decoded together.",
)
@click.option(
    "--json-schema",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text follows the JSON schema in FILE. Needs the package llguidance.",
)
@click.option("--echo", is_flag=True, help="Print the prompt before the text.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: text, token ids, timings, seed ...",
)
@click.option("--quiet", is_flag=True, help="Print no figures and no hints on standard error.")
def run(
    prompt: str | None,
    artifact: Path | None,
    device: str,
    threads: int | None,
    draft: Path | None,
    sampling: Keywords,
    chat: bool,
    system: str | None,
    tokens: str | None,
    batch: str | None,
    batch_size: int,
    json_schema: Path | None,
    echo: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Generate text that continues PROMPT.

    Without PROMPT (or with -), the prompt is read from standard input. If both are given, the model
    gets PROMPT, an empty line, and standard input. Standard output is the text and nothing else;
    figures go to standard error.
    """
    if json_schema is not None:
        sampling = cast(Keywords, {**sampling, "json_schema": _schema(json_schema)})
    _check_combination(prompt, chat=chat, system=system, tokens=tokens, batch=batch)
    if system is not None:
        system = checked(system, "--system")
    if not quiet:
        hint_of_a_file(prompt, f"gptx run < {shlex.quote(prompt or '')}")
        hint_of_a_file(system, f'--system "$(cat {shlex.quote(system or "")})"')
    if batch is not None:
        lines = read_lines(batch)
        model = open_model(artifact, device=device, threads=threads, draft=draft, sampling=sampling)
        _hint(model, chat=chat, quiet=quiet)
        ok = run_lines(
            model, lines, sampling, chat=chat, system=system, batch_size=batch_size, echo=echo
        )
        sys.exit(0 if ok else 1)
    given: str | list[int] = read_prompt(prompt) if tokens is None else parse_tokens(tokens)
    began = time.perf_counter()
    model = open_model(artifact, device=device, threads=threads, draft=draft, sampling=sampling)
    load_seconds = time.perf_counter() - began
    if isinstance(given, str) and model.tokenizer is None:
        raise UsageError(
            f"{model.path} has no tokenizer: give token ids with --tokens 1,2,3 instead of a prompt"
        )
    _hint(model, chat=chat, quiet=quiet)
    stream = start(model, given, sampling, chat=chat, system=system)
    echoed = _echoed(model, given, chat=chat) if echo else ""
    interrupted = _print_text(model, stream, echoed, silent=as_json)
    completion = stream.completion
    if as_json:
        facts = result(model, completion)
        facts |= {"load_seconds": load_seconds, "seconds": time.perf_counter() - began}
        facts |= {"prompt": given} if echo else {}
        facts |= {"finish_reason": "interrupted"} if interrupted else {}
        write_json_line(facts)
    if not quiet and completion.token_ids:
        note(f"{figures(completion, interrupted=interrupted)}, loaded in {load_seconds:.2f} s")
    if interrupted:
        sys.exit(130)


def start(
    model: Model, given: str | list[int], sampling: Keywords, *, chat: bool, system: str | None
) -> Stream:
    """The stream for one prompt.

    With `chat` it gets the limit of `generate` (256 new tokens), which a chat does not have.
    """
    if not chat:
        return model.stream(given, **sampling)
    assert isinstance(given, str)
    options = sampling.copy()
    if options.get("max_new_tokens") is None and not limits_length(model.generation):
        options["max_new_tokens"] = MAX_NEW_TOKENS
    return model.chat(system=system).stream(given, **options)


def _print_text(model: Model, stream: Stream, echoed: str, *, silent: bool) -> bool:
    """Print the text of a stream while it is generated. Returns whether Ctrl-C ended it.

    silent: read the stream, but print nothing. Without a tokenizer, the token ids are printed at
    the end.
    """
    try:
        if silent:
            for _ in stream:
                pass
            return False
        with Printer() as printer:
            printer.write(echoed)
            try:
                for piece in stream:
                    printer.write(piece)
            finally:
                if model.tokenizer is None and stream.completion.token_ids:
                    printer.write(",".join(map(str, stream.completion.token_ids)))
    except KeyboardInterrupt:
        stream.close()
        return True
    return False


def _echoed(model: Model, given: str | list[int], *, chat: bool) -> str:
    """The prompt as --echo prints it."""
    if isinstance(given, str):
        return f"{given}\n\n" if chat else given
    return model.tokenizer.decode(given) if model.tokenizer else ",".join(map(str, given)) + ","


def _hint(model: Model, *, chat: bool, quiet: bool) -> None:
    """Hints about the model that the user has chosen."""
    if quiet:
        return
    if model.template is not None and not chat:
        note("hint: this is a chat model, --chat puts the prompt into its template")
    if model.manifest.precision == "fp16" and model.provider == "CPUExecutionProvider":
        note(
            "hint: ONNX Runtime computes most of fp16 in fp32 on a CPU:"
            " int8 is smaller and faster here"
        )


def _check_combination(
    prompt: str | None, *, chat: bool, system: str | None, tokens: str | None, batch: str | None
) -> None:
    """Raise click.UsageError for options that exclude each other."""
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat")
    if batch is None:
        refuse_without("--batch", "batch_size")
    if tokens is not None and (prompt is not None or batch is not None or chat):
        raise click.UsageError(
            "--tokens takes the place of the prompt: leave out PROMPT, --batch and --chat"
        )
    if batch is not None and prompt is not None:
        raise click.UsageError("--batch takes the place of the prompt: leave out PROMPT")


def _schema(file: Path) -> str:
    """The text of a --json-schema file. Raises UsageError if it cannot be read."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--json-schema: {file} is no text file: {error}") from error
    parse_json(text, f"--json-schema: {file}", UsageError)
    return text

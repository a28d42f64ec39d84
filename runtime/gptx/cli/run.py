"""gptx run: a prompt in, the text that goes on from it on standard output. What the prompt is made of, how text is
printed and how a file of prompts is run stand in the files beside this one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.options import Sampling, model_options, sampling_options
from gptx.cli.output import Printer, figures, note, write_out
from gptx.cli.prompt import parse_tokens, read_prompt
from gptx.errors import UsageError

if TYPE_CHECKING:
    from gptx.model import Completion, Model, Stream

MAX_NEW_TOKENS = 256  # where neither the call nor the artifact says


@click.command()
@click.argument("prompt", required=False)
@model_options
@sampling_options
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--system", metavar="TEXT", help="The system message, with --chat.")
@click.option("--tokens", metavar="IDS", help="Token ids as the prompt: 1,2,3 (- reads them from standard input).")
@click.option("--batch", metavar="FILE", help="Run every line of FILE (- is standard input); a JSON result a line.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts run together.")
@click.option("--echo", is_flag=True, help="Print the prompt before the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, token ids, timings, seed ...")
@click.option("--quiet", is_flag=True, help="No figures and hints on standard error.")
def run(
    prompt: str | None,
    artifact: Path | None,
    device: str,
    threads: int | None,
    sampling: Sampling,
    chat: bool,
    system: str | None,
    tokens: str | None,
    batch: str | None,
    batch_size: int,
    echo: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Generate text that goes on from PROMPT.

    PROMPT can be piped in too (or be -). With both, the model gets PROMPT, an empty line, and what was piped.
    Standard output is the text and nothing else; figures go to standard error.
    """
    _check_combination(prompt, chat=chat, system=system, tokens=tokens, batch=batch, as_json=as_json)
    if batch is not None:
        from gptx.cli.batch import read_prompts, run_batch

        lines = read_prompts(batch)
        model = _load(artifact, device=device, threads=threads)
        failed = run_batch(model, lines, sampling, chat=chat, system=system, batch_size=batch_size, echo=echo, quiet=quiet)
        sys.exit(1 if failed else 0)
    given: str | list[int] = read_prompt(prompt) if tokens is None else parse_tokens(tokens)
    began = time.perf_counter()
    model = _load(artifact, device=device, threads=threads)
    loaded = time.perf_counter()
    if not quiet:
        hint(model, chat=chat)
    stream = start(model, given, sampling, chat=chat, system=system)
    interrupted = _print_text(stream, given if echo else None, model=model, silent=as_json)

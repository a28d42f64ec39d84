"""gptx run --batch: lines of prompts in, a JSON result a line out, in the same order. One bad prompt does not stop the
others: its line says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptx.cli.output import result, write_json_line
from gptx.cli.prompt import parse_tokens
from gptx.errors import PromptError
from gptx.generation.options import Given

if TYPE_CHECKING:
    from gptx.model import Model

Outcome = dict[str, Any]


def run_lines(
    model: Model,
    lines: Sequence[str],
    sampling: Given,
    *,
    chat: bool,
    system: str | None,
    batch_size: int,
    echo: bool,
) -> bool:
    """Print a result for every line, `batch_size` of them decoded together; whether all of them could be run.

    Line i of a run with --seed N draws with N + i, however the lines are grouped.
    """
    if chat:
        model.need_chat()
    all_ran = True
    for first in range(0, len(lines), batch_size):
        group = lines[first : first + batch_size]
        for line, outcome in zip(
            group, _run_group(model, group, sampling, first, chat=chat, system=system)
        ):
            all_ran = all_ran and "error" not in outcome
            write_json_line(({"prompt": line} if echo else {}) | outcome)
    return all_ran


def _run_group(
    model: Model,
    lines: Sequence[str],
    sampling: Given,
    first: int,
    *,
    chat: bool,
    system: str | None,
) -> list[Outcome]:
    try:
        prompts = [_prompt(model, line, chat=chat, system=system) for line in lines]
        completions = model.generate(prompts, **_seeded(sampling, first))
        return [result(model, completion) for completion in completions]
    except PromptError as error:
        if len(lines) == 1:
            return [{"error": str(error)}]
    alone = enumerate(lines, first)  # find out which of them it is
    return [
        _run_group(model, [line], sampling, at, chat=chat, system=system)[0] for at, line in alone
    ]


def _prompt(model: Model, line: str, *, chat: bool, system: str | None) -> list[int]:
    if not line:
        raise PromptError("the line is empty")
    if chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return model.chat_ids([*messages, {"role": "user", "content": line}])
    return model.encode(line) if model.tokenizer else parse_tokens(line, "the line")


def _seeded(sampling: Given, first: int) -> Given:
    """generate adds a prompt's place in its list to the seed; this adds the list's place in the file."""
    options = sampling.copy()
    seed = options.get("seed")
    if seed is not None:
        options["seed"] = seed + first
    return options

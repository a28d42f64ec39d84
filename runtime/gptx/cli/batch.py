"""gptx run --batch: one prompt per line in, one JSON object per line out, in the same order.

A prompt that cannot be run does not stop the others: its object has the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptx.cli.output import result, write_json_line
from gptx.cli.prompt import parse_tokens
from gptx.errors import PromptError
from gptx.generation.option_keywords import Keywords

if TYPE_CHECKING:
    from gptx.model import Model

Result = dict[str, Any]


def run_lines(
    model: Model,
    lines: Sequence[str],
    sampling: Keywords,
    *,
    chat: bool,
    system: str | None,
    batch_size: int,
    echo: bool,
) -> bool:
    """Print a result for every line. Returns whether all lines could be run.

    `batch_size` lines are decoded together. With --seed N, line i (from 0) draws with the seed N +
    i, whatever the batch size.
    """
    if chat:
        model.need_chat()
    all_ran = True
    for first in range(0, len(lines), batch_size):
        group = lines[first : first + batch_size]
        for line, facts in zip(
            group, _run_group(model, group, sampling, first, chat=chat, system=system)
        ):
            all_ran = all_ran and "error" not in facts
            write_json_line(({"prompt": line} if echo else {}) | facts)
    return all_ran


def _run_group(
    model: Model,
    lines: Sequence[str],
    sampling: Keywords,
    first: int,
    *,
    chat: bool,
    system: str | None,
) -> list[Result]:
    """The results of lines that are decoded together; `first` is the number of the first line.

    If one of them cannot be run, each is run alone, to find out which.
    """
    try:
        prompts = [_prompt(model, line, chat=chat, system=system) for line in lines]
        completions = model.generate(prompts, **_seeded(sampling, first))
        return [result(model, completion) for completion in completions]
    except PromptError as error:
        if len(lines) == 1:
            return [{"error": str(error)}]
    return [
        _run_group(model, [line], sampling, at, chat=chat, system=system)[0]
        for at, line in enumerate(lines, first)
    ]


def _prompt(model: Model, line: str, *, chat: bool, system: str | None) -> list[int]:
    """The token ids of a line. Raises PromptError if it cannot be run."""
    if not line:
        raise PromptError("the line is empty")
    if chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return model.chat_ids([*messages, {"role": "user", "content": line}])
    return model.encode(line) if model.tokenizer else parse_tokens(line, "the line")


def _seeded(sampling: Keywords, first: int) -> Keywords:
    """The options, with `first` added to the seed.

    `generate` adds a prompt's place in the group itself.
    """
    options = sampling.copy()
    seed = options.get("seed")
    if seed is not None:
        options["seed"] = seed + first
    return options

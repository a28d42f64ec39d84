"""Summarize a text: put as much of it as fits into the task's prompt, and generate the answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptx.artifact.task import SUMMARIZE_TEMPLATE, Example, check_examples, check_template
from gptx.artifact.task import prompt as prompt_of
from gptx.engine.loaded_model import LoadedModel
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.resolve_options import warn_of_unused
from gptx.generation.transcript import Completion
from gptx.tasks.fit_prompt import fit_prompt

SUMMARY_TOKENS = 96  # the limit, unless the call or generation_config.json sets one


@dataclass(frozen=True, kw_only=True)
class Summary(Completion):
    """A Completion whose `text` is the summary, without white space around it.

    left_out: the number of tokens that were cut from the end of the text, to fit the context.
    """

    left_out: int


def summarize(
    model: LoadedModel,
    text: str,
    *,
    examples: Sequence[Example],
    template: str | None,
    options: Mapping[str, Any],
) -> Summary:
    """Summarize a text; Model.summarize documents the arguments."""
    if not isinstance(text, str) or not text.strip():
        raise PromptError(
            f"the text is {'empty' if isinstance(text, str) else shown(text)}:"
            " give a text to summarize"
        )
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so there is no text to summarize")
    check_examples(examples)
    if template is not None:
        check_template(template)
    task = model.task if model.task is not None and model.task.kind == "summarize" else None
    template = template or (task.template if task else None) or SUMMARIZE_TEMPLATE
    given, room = _options(model, options, few_shot=bool(examples))
    ask = functools.partial(prompt_of, template, examples=examples)
    fitted = fit_prompt(text, ask, model.tokenizer, room=room, n_examples=len(examples))
    completion = model.generate(fitted.ids, **given)
    facts: dict[str, Any] = asdict(completion) | {"text": (completion.text or "").strip()}
    return Summary(**facts, left_out=fitted.left_out)


def _options(
    model: LoadedModel, options: Mapping[str, Any], *, few_shot: bool
) -> tuple[dict[str, Any], int]:
    """The options of `generate` for a summary, and the most tokens that the prompt may have.

    However long the summary may be, the prompt gets at least half of the context.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    greedy = "temperature" not in given
    given.setdefault("temperature", 0.0)
    if few_shot:
        # Examples end in an empty line; behind it, the model would go on with another example.
        given.setdefault("stop", "\n\n")
    resolved, control = model.resolve_options(given, max_new_tokens=SUMMARY_TOKENS)
    if control.negative_prompt is not None:
        given["negative_prompt"] = control.negative_prompt  # an iterator was read
    if greedy:  # `resolve` does not warn, as it was given a temperature
        warn_of_unused(given)
    context = model.n_ctx + 1  # the last token is not fed, so it needs no place
    if resolved.max_new_tokens is not None:
        given["max_new_tokens"] = resolved.max_new_tokens
    else:
        context = min(context, resolved.rules.max_length or context)
    return given, context - min(resolved.max_new_tokens or SUMMARY_TOKENS, (context - 1) // 2)

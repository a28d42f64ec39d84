"""Text to its summary: the prompt of the task, as much of the text as fits, and a greedy completion."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptx.artifact.task import SUMMARIZE_TEMPLATE, Example, check_examples, check_template
from gptx.artifact.task import prompt as asked_for
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.loaded_model import LoadedModel
from gptx.generation.resolve_options import resolve, warn_of_unused
from gptx.generation.stream import Completion
from gptx.tasks.classify import fit_or_say

SUMMARY_TOKENS = 96  # of a summary where neither the call nor the artifact says


@dataclass(frozen=True)
class Summary(Completion):
    """`text` is without the white space around it."""

    left_out: int  # tokens of the text's end that had no room in the context


def summarize(
    model: LoadedModel,
    text: str,
    *,
    examples: Sequence[Example],
    template: str | None,
    options: Mapping[str, Any],
) -> Summary:
    """As Model.summarize says."""
    if not isinstance(text, str) or not text.strip():
        raise PromptError(
            f"the text is {'empty' if isinstance(text, str) else shown(text)}: give a text to summarize"
        )
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so there is no text to summarize")
    check_examples(examples)
    if template is not None:
        check_template(template)
    task = model.task if model.task is not None and model.task.kind == "summarize" else None
    template = template or (task.template if task else None) or SUMMARIZE_TEMPLATE
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    greedy = "temperature" not in given
    if greedy:
        given["temperature"] = 0.0
    if examples:
        given.setdefault("stop", "\n\n")  # an example ends so, and another would follow
    resolved = resolve(given, model.generation, max_new_tokens=SUMMARY_TOKENS)
    if greedy:
        warn_of_unused(given)
    context = model.n_ctx + 1  # the last token is not fed
    if resolved.max_new_tokens is not None:
        given["max_new_tokens"] = resolved.max_new_tokens
    else:
        context = min(context, resolved.rules.max_length or context)
    room = context - min(resolved.max_new_tokens or SUMMARY_TOKENS, (context - 1) // 2)
    ask = functools.partial(asked_for, template, examples=examples)
    fitted = fit_or_say(text, ask, model.tokenizer, room, len(examples))
    completion = model.generate(fitted.ids, **given)
    facts: dict[str, Any] = asdict(completion) | {"text": (completion.text or "").strip()}
    return Summary(**facts, left_out=fitted.left_out)

"""Examples in; rows of token ids out, with what is trained of each: the answer and the end after it, or the class.

A prompt's tokens are those that the runtime makes of it, and the answer's follow as if the model had written them. What
is too long is cut, or left out, and counted. Knows no files and no batches.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptx.artifact.class_head import strip_padding
from gptx.artifact.task import Task, prompt
from gptx.errors import UsageError
from gptx.text.chat_template import ChatTemplate, Message
from gptx.text.tokenizer import Tokenizer
from gptx_models.data.batches import TokenRow
from gptx_models.data.examples import Example
from gptx_models.training.loss import IGNORED


@dataclass(frozen=True)
class TokenizedExamples:
    rows: list[TokenRow]
    n_ctx: int
    cut: int  # texts that lost their end, conversations that lost their last turns
    left_out: int  # examples whose answer has no room

    def __str__(self) -> str:
        """What became of what did not fit; "" where all of it did."""
        parts = [f"{self.cut} cut"] * (self.cut > 0) + [f"{self.left_out} left out"] * (
            self.left_out > 0
        )
        return (
            f"longer than the context of {self.n_ctx} tokens: {', '.join(parts)}" if parts else ""
        )


def tokenize_examples(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Tokenizer,
    *,
    n_ctx: int,
    end: int | None,
    pad: int | None = None,
    template: ChatTemplate | None = None,
) -> TokenizedExamples:
    """end: the id of the end of text, which is trained after an answer. pad: that of padding, which a head does not read
    at a text's end. template: of chat.

    Too long a text to classify or summarize loses its end, as in transformers' examples. A prompt to complete would mean
    something else, so its example is left out, as in axolotl. Of a conversation the turns that fit are trained.
    UsageError where no row is left, or a label is not the task's.
    """
    rows: list[TokenRow] = []
    cut = left_out = 0
    for example in examples:
        if task.kind == "chat":
            if template is None:
                raise UsageError("this model has no chat template, and chat needs one")
            made, whole = _conversation(example, template, tokenizer, n_ctx, end)
        else:
            if task.head:
                row, whole = _classified(example, task, tokenizer, n_ctx, pad)
            else:
                row, whole = _answered(example, task, tokenizer, n_ctx, end)
            made = [row] if row else []
        rows += made
        cut += bool(made) and not whole
        left_out += not made
    if not rows:
        raise UsageError(f"no example fits into the model's context of {n_ctx} tokens")
    return TokenizedExamples(rows, n_ctx, cut, left_out)


def prompt_ids(
    text: str, task: Task, tokenizer: Tokenizer, *, room: int
) -> tuple[list[int], bool] | None:
    """The prompt's ids, at most `room`, and whether the whole text is in it; None where it cannot be."""
    asked, whole = _fitting(text, task, tokenizer, room)
    return None if asked is None else (tokenizer.encode(asked), whole)


def answer_text(answer: str, task: Task) -> str:
    """As it follows the prompt: a template's answer after a space, any other as it stands."""
    return f" {answer}" if task.template else answer


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token that a template ends an answer with: generation stops at it. None: it has none."""
    asked: list[Message] = [{"role": "user", "content": "a"}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": "b"}]
    _, answer = _turn(asked, answered, template, tokenizer, "a conversation")
    return answer[-1] if answer[-1] in tokenizer.hidden_ids else None


def _answered(
    example: Example, task: Task, tokenizer: Tokenizer, n_ctx: int, end: int | None
) -> tuple[TokenRow | None, bool]:
    if task.kind == "classify":
        _check_label(example, task)
    answer = answer_text(example.answers[0], task)
    asked, whole = (
        example.text if task.template is None else prompt(task.template, example.text),
        True,
    )
    ids, trained = _joined(asked, answer, tokenizer, end)
    if len(ids) + len(trained) > n_ctx + 1:  # the last token is only a target
        shorter, whole = _fitting(example.text, task, tokenizer, n_ctx + 1 - len(trained))
        if shorter is None or whole:  # nothing could be cut
            return None, False
        ids, trained = _joined(shorter, answer, tokenizer, end)
    return _row([*ids, *trained], [False] * len(ids) + [True] * len(trained)), whole


def _joined(
    asked: str, answer: str, tokenizer: Tokenizer, end: int | None
) -> tuple[list[int], list[int]]:
    return tokenizer.encode(asked), tokenizer.continuation(asked, answer) + (
        [] if end is None else [end]
    )


def _classified(
    example: Example, task: Task, tokenizer: Tokenizer, n_ctx: int, pad: int | None
) -> tuple[TokenRow | None, bool]:
    """The text; its class is the target of the last token that is no padding."""
    _check_label(example, task)
    asked, whole = _fitting(example.text, task, tokenizer, n_ctx)
    if asked is None:
        return None, False
    ids = strip_padding(tokenizer.encode(asked), pad)
    targets = [IGNORED] * (len(ids) - 1) + [task.labels.index(example.answers[0])]
    return TokenRow(np.array(ids, np.int32), np.array(targets, np.int32)), whole


def _check_label(example: Example, task: Task) -> None:
    label = example.answers[0]
    if label not in task.labels:
        raise UsageError(
            f"{example.place}: the label {label!r} is none of the {len(task.labels)} that are trained"
        )


def _fitting(text: str, task: Task, tokenizer: Tokenizer, room: int) -> tuple[str | None, bool]:
    """The prompt of as much of the text as `room` tokens hold (None: of none of it), and whether that is all."""

    def asked(length: int) -> str:
        return text[:length] if task.template is None else prompt(task.template, text[:length])

    if len(tokenizer.encode(asked(len(text)))) <= room:
        return asked(len(text)), True
    if task.kind == "completion":
        return None, False
    ends = [
        0,
        *(word.end() for word in re.finditer(r"\s*\S{1,20}", text)),
    ]  # 20: not all languages divide words
    fit = bisect_right(ends, room, lo=1, key=lambda end: len(tokenizer.encode(asked(end))))
    return asked(ends[fit - 1]) if fit > 1 else None, False


def _conversation(
    example: Example, template: ChatTemplate, tokenizer: Tokenizer, n_ctx: int, end: int | None
) -> tuple[list[TokenRow], bool]:
    """One row of a conversation, in which every answer is trained. Where a template shows earlier turns otherwise when the
    conversation goes on (reasoning is left out), the row ends and another begins: each answer is trained after what the
    runtime will feed before it."""
    rows: list[TokenRow] = []
    ids: list[int] = []
    trained: list[bool] = []
    whole = True
    for turn, message in enumerate(example.messages):
        if turn == 0 or message["role"] != "assistant":
            continue
        asked, answer = _turn(
            example.messages[:turn],
            example.messages[: turn + 1],
            template,
            tokenizer,
            example.place,
        )
        if answer[-1] not in tokenizer.hidden_ids and end is not None:
            answer = [*answer, end]
        if len(asked) + len(answer) > n_ctx + 1:
            whole = False
            break
        if asked[: len(ids)] != ids:
            rows.append(_row(ids, trained))
            trained = []
        trained = trained + [False] * (len(asked) - len(trained)) + [True] * len(answer)
        ids = asked + answer
    return [*rows, _row(ids, trained)] if ids else rows, whole


def _turn(
    asked: Sequence[Message],
    answered: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    place: str,
) -> tuple[list[int], list[int]]:
    """The ids before an answer, as the runtime feeds them, and the answer's, with the token that ends a turn."""
    try:
        before = template.render(asked)
        after = template.render(answered, add_generation_prompt=False)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    if not after.startswith(before) or len(after) == len(before):
        raise UsageError(
            f"{place}: the chat template writes an answer otherwise than it asks for one"
        )
    answer = tokenizer.continuation(before, after[len(before) :], add_special_tokens=False)
    special = [at for at, token in enumerate(answer) if token in tokenizer.hidden_ids]
    return tokenizer.encode(before, add_special_tokens=False), answer[
        : special[-1] + 1
    ] if special else answer


def _row(ids: list[int], trained: list[bool]) -> TokenRow:
    targets = [token if wanted else IGNORED for token, wanted in zip(ids[1:], trained[1:])]
    return TokenRow(np.array(ids[:-1], np.int32), np.array(targets, np.int32))

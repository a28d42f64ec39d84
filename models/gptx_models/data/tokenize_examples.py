"""Turn the examples of a task into rows of token ids and targets for the loss.

The loss is computed on the answer and the end token after it, or on the class; the rest of a row is
IGNORED. A prompt has the token ids that the runtime will give the model, and an answer has the ids
that the model would generate after it.

Examples that are too long are cut or left out, and counted. Knows no files and no batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptx.artifact.class_head import strip_padding
from gptx.artifact.task import Task, prompt
from gptx.errors import UsageError
from gptx.text.chat_template import ChatTemplate, Message
from gptx.text.tokenizer import Tokenizer
from gptx.text.truncate import Fitted, fit
from gptx_models.data.batches import TokenRow
from gptx_models.data.examples import Example
from gptx_models.training.loss import IGNORED


@dataclass(frozen=True)
class TokenizedExamples:
    rows: list[TokenRow]
    n_ctx: int
    cut: int  # examples that lost the end of their text, or the last turns of their conversation
    left_out: int  # examples without room for an answer

    def __str__(self) -> str:
        """What happened to examples that are longer than the context; "" if none is."""
        parts = [f"{self.cut} cut"] if self.cut else []
        parts += [f"{self.left_out} left out"] if self.left_out else []
        if not parts:
            return ""
        return f"longer than the context of {self.n_ctx} tokens: {', '.join(parts)}"


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
    """The rows of `examples`, each of at most `n_ctx` tokens.

    end: the id of the end-of-text token, which follows an answer. pad: the id of the padding token,
    which a classification head does not read at the end of a text. template: needed for chat.

    A text that is too long to classify or summarize loses its end, as in transformers' examples. A
    prompt to complete would mean something else without its end, so its example is left out, as in
    axolotl. Of a conversation that is too long, the turns that fit are kept.

    Raises UsageError if no row is left, if a label is not one of the task's, or if a chat template
    is missing or cannot be used.
    """
    if task.kind == "chat" and template is None:
        raise UsageError("this model has no chat template, and chat needs one")
    rows: list[TokenRow] = []
    cut = left_out = 0
    for example in examples:
        if task.kind == "chat":
            assert template is not None
            made, whole = _conversation(example, template, tokenizer, n_ctx, end)
        elif task.head:
            made, whole = _classified(example, task, tokenizer, n_ctx, pad)
        else:
            made, whole = _answered(example, task, tokenizer, n_ctx, end)
        rows += made
        cut += bool(made) and not whole
        left_out += not made
    if not rows:
        raise UsageError(f"no example fits into the model's context of {n_ctx} tokens")
    return TokenizedExamples(rows, n_ctx, cut, left_out)


def prompt_ids(text: str, task: Task, tokenizer: Tokenizer, *, room: int) -> Fitted | None:
    """The prompt of a task, of at most `room` tokens; None if it does not fit.

    The end of `text` is cut off, except for completion, whose prompts stay whole.
    """
    fitted = fit(text, lambda part: task_prompt(part, task), tokenizer, room)
    if fitted is not None and fitted.left_out and task.kind == "completion":
        return None
    return fitted


def task_prompt(text: str, task: Task) -> str:
    """`text` in the template of the task, if it has one."""
    return text if task.template is None else prompt(task.template, text)


def answer_text(answer: str, task: Task) -> str:
    """The answer as it follows the prompt: after a template a space comes first."""
    return f" {answer}" if task.template else answer


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The id of the special token with which a chat template ends an answer; None if it has none.

    Generation stops at this token.
    """
    asked: list[Message] = [{"role": "user", "content": "a"}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": "b"}]
    _, answer = _turn(asked, answered, template, tokenizer, "a conversation")
    return answer[-1] if answer[-1] in tokenizer.hidden_ids else None


# The next three functions, _answered, _classified and _conversation, each return the rows of one
# example and True if the example is whole. The rows are [] if there is no room for an answer.


def _answered(
    example: Example, task: Task, tokenizer: Tokenizer, n_ctx: int, end: int | None
) -> tuple[list[TokenRow], bool]:
    """One row: the prompt, the answer and the end token. The last two are the targets."""
    if task.kind == "classify":
        _check_label(example, task)
    answer = answer_text(example.answers[0], task)
    asked, whole = task_prompt(example.text, task), True
    ids, target_ids = _encode_pair(asked, answer, tokenizer, end)
    most = n_ctx + 1  # the last token of a row is only a target
    if len(ids) + len(target_ids) > most:
        fitted = prompt_ids(example.text, task, tokenizer, room=most - len(target_ids))
        if fitted is None or not fitted.left_out:
            return [], False
        ids, target_ids = _encode_pair(fitted.prompt, answer, tokenizer, end)
        whole = False
    in_loss = [False] * len(ids) + [True] * len(target_ids)
    return [_row([*ids, *target_ids], in_loss)], whole


def _encode_pair(
    asked: str, answer: str, tokenizer: Tokenizer, end: int | None
) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and those of the answer with the end token behind it."""
    answer_ids = tokenizer.continuation(asked, answer)
    return tokenizer.encode(asked), answer_ids + ([] if end is None else [end])


def _classified(
    example: Example, task: Task, tokenizer: Tokenizer, n_ctx: int, pad: int | None
) -> tuple[list[TokenRow], bool]:
    """The text, with the class as the target of its last token that is not padding."""
    _check_label(example, task)
    fitted = prompt_ids(example.text, task, tokenizer, room=n_ctx)
    if fitted is None:
        return [], False
    ids = strip_padding(fitted.ids, pad)
    targets = [IGNORED] * (len(ids) - 1) + [task.labels.index(example.answers[0])]
    row = TokenRow(np.array(ids, np.int32), np.array(targets, np.int32))
    return [row], not fitted.left_out


def _check_label(example: Example, task: Task) -> None:
    label = example.answers[0]
    if label not in task.labels:
        raise UsageError(
            f"{example.place}: the label {label!r} is not one of the task's {len(task.labels)}"
        )


def _conversation(
    example: Example, template: ChatTemplate, tokenizer: Tokenizer, n_ctx: int, end: int | None
) -> tuple[list[TokenRow], bool]:
    """The turns of a conversation, with every answer of the assistant as a target.

    Mostly this is one row. Some templates render an earlier turn differently once the conversation
    goes on: they leave its reasoning out, for example. A new row begins there, so that each answer
    follows the ids that the runtime will feed before it.
    """
    rows: list[TokenRow] = []
    ids: list[int] = []
    in_loss: list[bool] = []
    messages = example.messages
    for at, message in enumerate(messages):
        if at == 0 or message["role"] != "assistant":
            continue
        asked, answer = _turn(messages[:at], messages[: at + 1], template, tokenizer, example.place)
        if answer[-1] not in tokenizer.hidden_ids and end is not None:
            answer = [*answer, end]
        if len(asked) + len(answer) > n_ctx + 1:
            return [*rows, _row(ids, in_loss)] if ids else rows, False
        if asked[: len(ids)] != ids:
            rows.append(_row(ids, in_loss))
            in_loss = []
        in_loss = in_loss + [False] * (len(asked) - len(in_loss)) + [True] * len(answer)
        ids = asked + answer
    return [*rows, _row(ids, in_loss)] if ids else rows, True


def _turn(
    asked: Sequence[Message],
    answered: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    place: str,
) -> tuple[list[int], list[int]]:
    """The ids before an answer, as the runtime feeds them, and the ids of the answer.

    asked: the messages before the answer. answered: the same messages and the answer. The ids of
    the answer stop after its last special token, which ends the turn. An answer without a special
    token is kept whole.
    """
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
    if special:
        answer = answer[: special[-1] + 1]
    return tokenizer.encode(before, add_special_tokens=False), answer


def _row(ids: list[int], in_loss: list[bool]) -> TokenRow:
    """A row whose targets are the next ids. in_loss: False for ids that are no targets."""
    targets = [token if wanted else IGNORED for token, wanted in zip(ids[1:], in_loss[1:])]
    return TokenRow(np.array(ids[:-1], np.int32), np.array(targets, np.int32))

"""Files and a task in; what a fine-tuning learns and is judged by out: rows of token ids, and the task's own figures.

The figures are made as the runtime makes its answers: labels by their log-probability or by the head, summaries greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.class_head import strip_padding
from gptx.artifact.hashes import sha256
from gptx.artifact.task import CLASSIFY_TEMPLATE, SUMMARIZE_TEMPLATE, Kind, Task, prompt
from gptx.errors import UsageError
from gptx.progress import note, stage
from gptx_models.checkpoints.text_setup import TextSetup
from gptx_models.data.batches import TokenRow
from gptx_models.data.examples import INSTRUCTION_TEMPLATE, Example, labels_of, read_examples
from gptx_models.data.pretraining import encode
from gptx_models.data.record_files import RECORDS
from gptx_models.data.text_files import TEXTS, documents, list_files
from gptx_models.data.tokenize_examples import (
    answer_text,
    end_of_turn,
    prompt_ids,
    tokenize_examples,
)
from gptx_models.evaluation.answers import class_of, greedy, label_scores
from gptx_models.evaluation.metrics import accuracy, macro_f1, rouge
from gptx_models.gpt.model import GPT

SUMMARY_TOKENS = 96  # of a summary that is judged, at most a quarter of the context
Judge = Callable[[GPT, bool], dict[str, float]]  # a model, and whether it has trained the task


@dataclass(frozen=True)
class FinetuneDataset:
    setup: TextSetup
    task: Task
    train: list[TokenRow]
    val: list[TokenRow]
    judge: Judge
    origin: dict[str, Any]  # what all of it was made from
    eos_token_id: list[int]  # what ends an answer; the one that is trained is the first
    bytes_per_token: float | None = None


def study(
    setup: TextSetup,
    files: Sequence[Path],
    kind: Kind,
    *,
    n_ctx: int,
    validation: Sequence[Path] = (),
    fields: Mapping[str, str] | None = None,
    template: str | None = None,
    head: bool = False,
    judged: int = 200,
) -> FinetuneDataset:
    """n_ctx: tokens of the longest row. validation: without it every tenth example. judged: examples that the figures are
    of. Raises UsageError for what is wrong with the files or does not fit the task."""
    kinds = TEXTS if kind == "text" else RECORDS
    origin = {
        "files": [sha256(file) for file in list_files(files, kinds=kinds)],
        "validation": [sha256(file) for file in list_files(validation, kinds=kinds)]
        if validation
        else None,
        "tokenizer": setup.digest(),
        "task": kind,
        "context": n_ctx,
        "fields": fields,
        "template": template,
        "head": head,
    }
    if kind == "text":
        return _of_text(setup, files, validation, n_ctx, origin)
    with stage("Reading the examples"):
        read = read_examples(files, kind, fields=fields)
        if validation:
            train, val = read.found, read_examples(validation, kind, fields=fields).found
        else:
            train = [example for at, example in enumerate(read.found) if at % 10 != 9]
            val = read.found[9::10]
    val = _spread(val, judged)
    if read.blank:
        note(f"{read.blank} records without text or answer are left out")
    if not val:
        raise UsageError(
            f"{len(train)} examples leave none to validate with: give ten or more, or --validation"
        )
    labels = labels_of([*train, *val]) if kind == "classify" else ()
    default = {
        "classify": None if head else CLASSIFY_TEMPLATE,
        "summarize": SUMMARIZE_TEMPLATE,
    }.get(kind)
    if read.instructions:
        default = INSTRUCTION_TEMPLATE
    task = Task(kind, template or default, labels, head)
    chat = setup.template if kind == "chat" else None
    options: dict[str, Any] = {"n_ctx": n_ctx, "end": setup.end, "pad": setup.pad, "template": chat}
    made = [tokenize_examples(some, task, setup.tokenizer, **options) for some in (train, val)]
    for name, rows in zip(("examples", "validation examples"), made):
        if str(rows):
            note(f"{name} {rows}")
    turn = end_of_turn(chat, setup.tokenizer) if chat else None
    ends = setup.ends if turn is None else [turn, *(end for end in setup.ends if end != turn)]
    return FinetuneDataset(
        setup,
        task,
        train=made[0].rows,
        val=made[1].rows,
        judge=_judge(task, setup, val, n_ctx),
        origin=origin,
        eos_token_id=ends,
    )


def _of_text(
    setup: TextSetup,
    files: Sequence[Path],
    validation: Sequence[Path],
    n_ctx: int,
    origin: dict[str, Any],
) -> FinetuneDataset:
    """Text to go on from: windows of n_ctx tokens that do not overlap."""

    def windows(ids: np.ndarray) -> list[TokenRow]:
        spans = (ids[at : at + n_ctx + 1] for at in range(0, len(ids) - 1, n_ctx))
        return [TokenRow(span[:-1], span[1:]) for span in spans]

    with stage("Encoding the text"):
        ids = _encoded(setup, files)
        if validation:
            held_out = _encoded(setup, validation)
        else:
            cut = len(ids) * 9 // 10
            ids, held_out = ids[:cut], ids[cut:]
    if min(len(ids), len(held_out)) < 2:
        raise UsageError(
            f"{len(ids)} tokens to learn and {len(held_out)} to validate with are too few: give more text"
        )
    text = setup.tokenizer.decode(held_out.tolist())
    return FinetuneDataset(
        setup,
        Task("text"),
        train=windows(ids),
        val=windows(held_out),
        judge=lambda *_: {},
        origin=origin,
        eos_token_id=setup.ends,
        bytes_per_token=len(text.encode()) / len(held_out),
    )


def _encoded(setup: TextSetup, files: Sequence[Path]) -> np.ndarray:
    return np.concatenate(
        [row.astype(np.int32) for row in encode(setup.inner, documents(files), setup.ends)]
    )


def _judge(task: Task, setup: TextSetup, examples: Sequence[Example], n_ctx: int) -> Judge:
    if task.kind == "classify":
        return lambda gpt, trained: _classified(gpt, trained, task, setup, examples, n_ctx)
    if task.kind == "summarize":
        return lambda gpt, _: _summarized(gpt, task, setup, examples, n_ctx)
    return lambda *_: {}


def _classified(
    gpt: GPT, trained: bool, task: Task, setup: TextSetup, examples: Sequence[Example], n_ctx: int
) -> dict[str, float]:
    asked = prompt(task.template, "a") if task.template else "a"
    end = (
        setup.ends[:1] if trained else []
    )  # which the rows end with: it tells "card" from "card lost"
    labels = [
        [*setup.tokenizer.continuation(asked, answer_text(label, task)), *end]
        for label in task.labels
    ]
    room = n_ctx - max(map(len, labels))
    said, expected = [], []
    with stage(f"Classifying {len(examples)} texts", total=len(examples)) as advance:
        for example in examples:
            advance(1)
            fitted = prompt_ids(example.text, task, setup.tokenizer, room=room)
            if fitted is None:
                continue
            if task.head:
                at = class_of(gpt, strip_padding(fitted[0], setup.pad))
            else:
                at = int(label_scores(gpt, fitted[0], labels).argmax())
            said.append(task.labels[at])
            expected.append(example.answers[0])
    return {"accuracy": accuracy(said, expected), "macro_f1": macro_f1(said, expected)}


def _summarized(
    gpt: GPT, task: Task, setup: TextSetup, examples: Sequence[Example], n_ctx: int
) -> dict[str, float]:
    length = min(SUMMARY_TOKENS, n_ctx // 4)
    asked = [prompt_ids(e.text, task, setup.tokenizer, room=n_ctx - length) for e in examples]
    pairs = [(ids[0], example.answers) for ids, example in zip(asked, examples) if ids]
    said = []
    with stage(f"Summarizing {len(pairs)} texts", total=len(pairs)) as advance:
        for ids in greedy(gpt, [ids for ids, _ in pairs], n_tokens=length, ends=setup.ends):
            said.append(setup.tokenizer.decode(ids).strip())
            advance(1)
    return rouge(said, [answers for _, answers in pairs])


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many, from all over the list: files are often sorted by label."""
    if len(examples) <= most:
        return list(examples)
    return [examples[at * len(examples) // most] for at in range(most)]

"""Load the training rows and the evaluation examples of one fine-tuning task. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.hashes import sha256
from gptx.artifact.task import CLASSIFY_TEMPLATE, SUMMARIZE_TEMPLATE, Kind, Task
from gptx.errors import UsageError
from gptx.progress import note, stage
from gptx_models.checkpoints.text_setup import TextSetup
from gptx_models.data.batches import TokenRow
from gptx_models.data.examples import (
    INSTRUCTION_TEMPLATE,
    Example,
    Examples,
    labels_of,
    read_examples,
)
from gptx_models.data.pretraining import encode
from gptx_models.data.record_files import RECORDS
from gptx_models.data.text_files import TEXTS, documents, list_files
from gptx_models.data.tokenize_examples import end_of_turn, tokenize_examples


@dataclass(frozen=True)
class FinetuneDataset:
    """Training rows and evaluation for one fine-tuning task."""

    setup: TextSetup
    task: Task
    n_ctx: int  # tokens of the longest row
    train: list[TokenRow]
    val: list[TokenRow]
    eval_examples: list[Example]  # the examples of `val`, for the metrics; [] for the task text
    origin: dict[str, Any]  # hashes and options that decide the rows, for run.json
    eos_token_id: list[int]  # ids that end an answer; training rows use the first
    # UTF-8 bytes per token of the validation text; None for tasks other than text.
    bytes_per_token: float | None = None


def load_finetune_dataset(
    setup: TextSetup,
    files: Sequence[Path],
    kind: Kind,
    *,
    n_ctx: int,
    validation: Sequence[Path] = (),
    fields: Mapping[str, str] | None = None,
    template: str | None = None,
    head: bool = False,
    n_eval: int = 200,
) -> FinetuneDataset:
    """Read the examples of `files` and turn them into rows of at most `n_ctx` tokens.

    setup: the tokenizer of the base checkpoint.
    validation: files with validation examples; without them every tenth example of `files`, or the
    last tenth of the tokens for the task text.
    fields: see examples.read_examples.
    template: the prompt, with {text} in it; None stands for the task's default.
    head: classify with a new head instead of by the labels' log-probabilities.
    n_eval: the most validation examples; they are taken evenly from the whole list.

    Raises UsageError, which names the file or the option, if the files cannot be read or do not
    fit the task.
    """
    kinds = TEXTS if kind == "text" else RECORDS
    origin = {
        "files": _hashes(files, kinds),
        "validation": _hashes(validation, kinds) if validation else None,
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
        train, val = _split(read, validation, kind, fields)
    val = _spread(val, n_eval)
    if read.blank:
        note(f"{read.blank} records without text or answer are left out")
    if not val:
        raise UsageError(
            f"{len(train)} examples leave none to validate with: give ten or more, or --validation"
        )
    task = _task(kind, read, [*train, *val], template, head)
    chat = setup.template if kind == "chat" else None
    options: dict[str, Any] = {"n_ctx": n_ctx, "end": setup.end, "pad": setup.pad, "template": chat}
    rows = []
    for name, examples in (("examples", train), ("validation examples", val)):
        made = tokenize_examples(examples, task, setup.tokenizer, **options)
        if said := str(made):
            note(f"{name} {said}")
        rows.append(made.rows)
    turn = end_of_turn(chat, setup.tokenizer) if chat else None
    ends = setup.ends if turn is None else [turn, *(end for end in setup.ends if end != turn)]
    return FinetuneDataset(setup, task, n_ctx, rows[0], rows[1], val, origin, ends)


def _hashes(paths: Sequence[Path], kinds: Sequence[str]) -> list[str]:
    return [sha256(file) for file in list_files(paths, kinds=kinds)]


def _split(
    read: Examples, validation: Sequence[Path], kind: Kind, fields: Mapping[str, str] | None
) -> tuple[list[Example], list[Example]]:
    """The examples to train on and to validate with."""
    if validation:
        return read.found, read_examples(validation, kind, fields=fields).found
    train = [example for at, example in enumerate(read.found) if at % 10 != 9]
    return train, read.found[9::10]


def _task(
    kind: Kind, read: Examples, examples: Sequence[Example], template: str | None, head: bool
) -> Task:
    """The task with its labels and its template. template: None stands for the kind's default."""
    labels = labels_of(examples) if kind == "classify" else ()
    default = None
    if read.instructions:
        default = INSTRUCTION_TEMPLATE
    elif kind == "classify" and not head:
        default = CLASSIFY_TEMPLATE
    elif kind == "summarize":
        default = SUMMARIZE_TEMPLATE
    return Task(kind, template or default, labels, head)


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` examples, taken evenly from the list: files are often sorted by label."""
    if len(examples) <= most:
        return list(examples)
    return [examples[at * len(examples) // most] for at in range(most)]


def _of_text(
    setup: TextSetup,
    files: Sequence[Path],
    validation: Sequence[Path],
    n_ctx: int,
    origin: dict[str, Any],
) -> FinetuneDataset:
    """The dataset of plain text: rows of up to n_ctx tokens that do not overlap.

    Every token after the first is a target.
    """
    with stage("Encoding the text"):
        ids = _encoded(setup, files)
        if validation:
            held_out = _encoded(setup, validation)
        else:
            cut = len(ids) * 9 // 10
            ids, held_out = ids[:cut], ids[cut:]
    if min(len(ids), len(held_out)) < 2:
        raise UsageError(
            f"{len(ids)} tokens to train on and {len(held_out)} to validate with are too few: give"
            " more text"
        )
    text = setup.tokenizer.decode(held_out.tolist())
    return FinetuneDataset(
        setup,
        Task("text"),
        n_ctx,
        train=_windows(ids, n_ctx),
        val=_windows(held_out, n_ctx),
        eval_examples=[],
        origin=origin,
        eos_token_id=setup.ends,
        bytes_per_token=len(text.encode()) / len(held_out),
    )


def _encoded(setup: TextSetup, files: Sequence[Path]) -> np.ndarray:
    rows = encode(setup.inner, documents(files), setup.ends)
    return np.concatenate([row.astype(np.int32) for row in rows])


def _windows(ids: np.ndarray, n_ctx: int) -> list[TokenRow]:
    spans = (ids[at : at + n_ctx + 1] for at in range(0, len(ids) - 1, n_ctx))
    return [TokenRow(span[:-1], span[1:]) for span in spans]

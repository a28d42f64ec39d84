"""Texts for people: what the model in a folder does, and the gptx command that runs it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gptx.artifact.class_head import head_of
from gptx.artifact.manifest import Manifest
from gptx.artifact.task import read_task
from gptx.errors import first_of

MOST_LABELS = 8  # named in one message
_HEADS = {
    "single_label_classification": "classifies by a head, as one of",
    "multi_label_classification": "classifies by a head, each label by itself:",
    "regression": "computes values by a head:",
}


def task_in_words(folder: Path, n_class: int) -> str:
    """The task of the model in `folder`, such as "classifies by a head, as one of good, bad".

    n_class: outputs of the classification head; 0 for a language model. Returns "" if the model has
    no task. Raises ArtifactError.
    """
    task = read_task(folder)
    if n_class:
        head = head_of(folder, n_class, task)
        return f"{_HEADS[head.kind]} {listed(head.labels)}"
    if task is None:
        return ""
    if task.kind == "classify":
        return f"classifies by the text that follows a prompt, as one of {listed(task.labels)}"
    if task.kind == "summarize":
        return "summarizes"
    return f"fine-tuned for {task.kind}"


def use_command(manifest: Manifest, text: str | None = None) -> str:
    """The gptx command for an artifact: classify, summarize or run, according to its task.

    text: the input, as it is typed in a shell; None: a placeholder such as PROMPT.
    """
    path, task = manifest.path, read_task(manifest.path)
    kind = "classify" if manifest.model.n_class else task.kind if task else None
    artifact = f"-m {shlex.quote(str(path))}"
    if kind in ("classify", "summarize"):
        return f"gptx {kind} {artifact} {text or 'TEXT'}"
    if manifest.tokens.vocab_size is None:
        return f"gptx run {artifact} --tokens 1,2,3"
    chat = " --chat" if kind in (None, "chat") and (path / "chat_template.jinja").exists() else ""
    return f"gptx run {artifact}{chat} {text or 'PROMPT'}"


def listed(labels: Sequence[str]) -> str:
    """Labels for a message, at most MOST_LABELS of them."""
    return first_of(labels, MOST_LABELS)

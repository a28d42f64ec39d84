"""What the model in a folder is for, in words, and the command that uses it. Reads small JSON files only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gptx.artifact.class_head import head_of
from gptx.artifact.manifest import Manifest
from gptx.artifact.task import read_task

SHOWN = 8  # labels
_HEADS = {
    "single_label_classification": "classifies by a head, as one of",
    "multi_label_classification": "classifies by a head, each label by itself:",
    "regression": "computes values by a head:",
}


def task_in_words(folder: Path, n_class: int) -> str:
    """`n_class`: outputs of the classification head, 0 of a language model. "" where the model has no task. Raises
    ArtifactError."""
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
    """The command for an artifact's task, else for generating. `text` as it is typed in a shell; None: a placeholder."""
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
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more

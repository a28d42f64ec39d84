"""gptx_task.json: the task that a model was fine-tuned for, and the prompts of that task.

Training writes the file, and export copies it into the artifact. Training and the runtime both make
their prompts with `prompt`, so a model is asked exactly as it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gptx.artifact.json_files import read_json
from gptx.errors import ArtifactError, UsageError, shown

Kind = Literal["text", "completion", "chat", "classify", "summarize"]
Example = tuple[str, str]  # a text, and its answer: a label or a summary
FILE = "gptx_task.json"
TEXT = "{text}"
CLASSIFY_TEMPLATE = "Text: {text}\nLabel:"
SUMMARIZE_TEMPLATE = "{text}\n\nSummary:"


@dataclass(frozen=True)
class Task:
    """The task that a model was fine-tuned for.

    kind: "text" (continue a text), "completion" (answer a prompt), "chat", "classify" or
    "summarize".

    template: the prompt with {text} in it, such as "{text}\\nLabel:". The answer follows after one
    space. None: the task's default template.

    labels: the labels to choose from, only for "classify".

    head: True if the model classifies with a classification head, False if it scores the tokens of
    the labels.

    Raises UsageError for values that do not fit together.
    """

    kind: Kind
    template: str | None = None
    labels: tuple[str, ...] = ()
    head: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in get_args(Kind):
            raise UsageError(
                f"kind is {shown(self.kind)}, expected one of {', '.join(get_args(Kind))}"
            )
        if not isinstance(self.head, bool):
            raise UsageError(f"head is {shown(self.head)}, expected true or false")
        if self.template is not None:
            check_template(self.template)
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.labels, tuple) or self.labels:
            check_labels(self.labels)
        if self.kind != "classify" and (self.labels or self.head):
            raise UsageError(f"labels and a head belong to the kind classify, not to {self.kind}")


def read_task(folder: str | Path) -> Task | None:
    """The task of a checkpoint, adapter or artifact folder; None if it has no gptx_task.json.

    Raises ArtifactError.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    values = read_json(path, ArtifactError, advice="copy the folder again")
    if "kind" not in values:
        raise ArtifactError(
            f'{path} is no task: expected an object such as {{"kind": "classify", "labels": [...]}}'
        )
    unknown = sorted(set(values) - set(Task.__dataclass_fields__))
    if unknown:
        raise ArtifactError(
            f"{path} has fields that this gptx does not know ({', '.join(unknown)}): update gptx"
        )
    try:
        return Task(**values)
    except UsageError as error:
        raise ArtifactError(f"{path}: {error}") from error


def task_json(task: Task) -> dict[str, Any]:
    """The object for gptx_task.json; `read_task` reads it back."""
    return {**asdict(task), "labels": list(task.labels)}


def prompt(template: str, text: str, examples: Sequence[Example] = ()) -> str:
    """The prompt for a text: the template with `text` in it, behind the examples (few-shot).

    An example is a pair (text, answer). It is written as the template with the example's text, then
    a space, the answer and an empty line. Raises UsageError for a template without {text}.
    """
    check_template(template)
    before, after = template.split(TEXT)
    shots = "".join(f"{before}{shot}{after} {answer}\n\n" for shot, answer in examples)
    return f"{shots}{before}{text}{after}"


def check_template(template: str) -> None:
    """Raise UsageError unless the template holds {text} once and does not end in a space."""
    if not isinstance(template, str):
        raise UsageError(f"the template is {shown(template)}, expected a text with {TEXT} in it")
    count = template.count(TEXT)
    if count != 1:
        raise UsageError(f"the template {template!r} holds {TEXT} {_times(count)}, expected once")
    if template.endswith(" "):
        raise UsageError(
            f"the template {template!r} ends in a space: "
            "leave it out, gptx puts a space before the answer"
        )


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raise UsageError unless `texts` is a list of texts. name: what the message calls them."""
    if (
        isinstance(texts, str)
        or not isinstance(texts, Sequence)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise UsageError(f"{name} are {shown(texts)}, expected a list of texts")


def check_labels(labels: Sequence[str]) -> None:
    """Raise UsageError unless there are at least two labels, all different.

    None may be empty, or have white space around it.
    """
    check_texts("labels", labels)
    labels = list(labels)  # a deque has no slices
    bare = next((label for label in labels if not label.strip() or label != label.strip()), None)
    if bare is not None:
        raise UsageError(f"the label {bare!r} is empty or has white space around it")
    twice = next((label for n, label in enumerate(labels) if label in labels[:n]), None)
    if twice is not None:
        raise UsageError(f"the label {twice!r} is given twice")
    if len(labels) < 2:
        given = f"there is only {labels[0]!r}" if labels else "there are none"
        raise UsageError(f"classifying needs at least two labels, and {given}")


def check_examples(examples: Sequence[Example]) -> None:
    """Raise UsageError unless `examples` is a list of (text, answer)."""
    if isinstance(examples, str) or not isinstance(examples, Sequence):
        raise UsageError(
            f"examples are {shown(examples)}, expected a list of pairs: a text and its answer"
        )
    for number, example in enumerate(examples, 1):
        pair = not isinstance(example, str) and isinstance(example, Sequence) and len(example) == 2
        if not pair or not all(isinstance(part, str) and part.strip() for part in example):
            raise UsageError(
                f"example {number} is {shown(example)}, expected a text and its answer"
            )


def _times(count: int) -> str:
    return {0: "nowhere", 2: "twice"}.get(count, f"{count} times")

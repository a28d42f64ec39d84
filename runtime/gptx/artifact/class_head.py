"""A classification head: its labels, what its outputs mean, and which token's logits count.

Read from config.json by the rules of transformers: PretrainedConfig, the models called
...ForSequenceClassification, and the text-classification pipeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gptx.artifact.json_files import read_side_file
from gptx.artifact.task import Task
from gptx.errors import ArtifactError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
N_LABELS = 2  # if config.json has neither id2label nor num_labels: transformers' default
MOST_LABELS = 1_000_000


@dataclass(frozen=True)
class Head:
    """A classification head. A field that config.json lacks is None."""

    labels: tuple[str, ...]
    problem_type: ProblemType | None = None
    pad: int | None = None  # pad_token_id

    @property
    def kind(self) -> ProblemType:
        """The problem type. If config.json states none, it follows from the number of labels.

        With one label, each text has it or not (multi-label). With several, each text has exactly
        one of them (single-label).
        """
        if self.problem_type == "regression":
            return "regression"
        several = self.problem_type == "multi_label_classification" or len(self.labels) == 1
        return "multi_label_classification" if several else "single_label_classification"


def strip_padding(ids: Sequence[int], pad: int | None) -> list[int]:
    """The token ids up to the last one that is not padding.

    A head classifies a text by its logits at that token. If all tokens are padding, the first one
    is kept. pad: the id of the padding token; None if there is none.
    """
    return list(ids[: 1 + max((at for at, token in enumerate(ids) if token != pad), default=0)])


def head_of(folder: Path, n_class: int, task: Task | None) -> Head:
    """The head of the artifact in `folder`, whose graph has `n_class` outputs.

    task: the artifact's task, or None. If it names labels for a head, they replace the labels in
    config.json. Raises ArtifactError.
    """
    path = folder / "config.json"
    try:
        head = read_head(read_side_file(path))
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if task is not None and task.head and task.labels:
        path, head = folder / "gptx_task.json", replace(head, labels=task.labels)
    if len(head.labels) != n_class:
        raise ArtifactError(
            f"{path} names {len(head.labels)} labels, and the head has {n_class} outputs"
        )
    return head


def read_head(config: Mapping[str, Any]) -> Head:
    """The head that a config.json describes. Raises ValueError that names the field."""
    names, count, pad = config.get("id2label"), config.get("num_labels"), config.get("pad_token_id")
    kind = config.get("problem_type")
    if kind is not None and kind not in get_args(ProblemType):
        raise ValueError(
            f"problem_type is {kind!r}, expected one of {', '.join(get_args(ProblemType))}"
        )
    if pad is not None and (not isinstance(pad, int) or isinstance(pad, bool)):
        raise ValueError(f"pad_token_id is {pad!r}, expected a token id")
    if not names:
        count = N_LABELS if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS:
            raise ValueError(
                f"num_labels is {count!r}, expected a number from 1 to {MOST_LABELS:,}"
            )
        return Head(default_labels(count), kind, pad)
    return Head(_labels(names), kind, pad)


def default_labels(count: int) -> tuple[str, ...]:
    """transformers' names for classes without names: LABEL_0, LABEL_1, ..."""
    return tuple(f"LABEL_{at}" for at in range(count))


def _labels(names: Any) -> tuple[str, ...]:
    """The names in id2label in the order of their ids. Its keys, the ids, are unordered strings."""
    if not isinstance(names, dict):
        raise ValueError(
            f"id2label is {names!r:.80}, expected an object such as "
            "{'0': 'negative', '1': 'positive'}"
        )
    by_id = {int(key): name for key, name in names.items() if str(key).isdecimal()}
    if len(names) != len(by_id) or sorted(by_id) != list(range(len(by_id))):
        raise ValueError(
            f"id2label names the ids {', '.join(map(str, names)):.80}, "
            f"expected 0 to {len(names) - 1}"
        )
    odd = [name for name in by_id.values() if not isinstance(name, str | int | float)]
    if odd:
        raise ValueError(f"id2label names a label {odd[0]!r:.80}, expected a text")
    labels = tuple(str(by_id[at]) for at in range(len(by_id)))
    twice = [label for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise ValueError(
            f"id2label gives several ids the name {twice[0]!r}: give each id a name of its own"
        )
    return labels

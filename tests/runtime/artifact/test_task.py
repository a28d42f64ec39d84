"""gptx_task.json is read as it was written; prompts of tasks; values that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptx.artifact.task import (
    CLASSIFY_TEMPLATE,
    SUMMARIZE_TEMPLATE,
    Task,
    prompt,
    read_task,
    task_json,
)
from gptx.errors import ArtifactError, UsageError


@pytest.mark.parametrize(
    "task",
    [
        Task("text"),
        Task("summarize", SUMMARIZE_TEMPLATE),
        Task("classify", CLASSIFY_TEMPLATE, ("good", "very bad")),
        Task("classify", labels=("a", "ü"), head=True),
    ],
)
def test_a_task_is_read_as_it_was_written(task: Task, tmp_path: Path) -> None:
    (tmp_path / "gptx_task.json").write_text(json.dumps(task_json(task)))
    assert read_task(tmp_path) == task


def test_a_folder_without_a_task(tmp_path: Path) -> None:
    assert read_task(tmp_path) is None


def test_zero_one_and_few_shots() -> None:
    assert prompt("Text: {text}\nLabel:", "fine") == "Text: fine\nLabel:"
    assert prompt("Text: {text}\nLabel:", "fine", [("awful", "bad")]) == (
        "Text: awful\nLabel: bad\n\nText: fine\nLabel:"
    )
    assert prompt("{text}\n\nSummary:", "C", [("A", "a"), ("B", "b")]) == (
        "A\n\nSummary: a\n\nB\n\nSummary: b\n\nC\n\nSummary:"
    )


def test_braces_in_texts_and_templates_are_only_characters() -> None:
    assert prompt('{"t": "{text}"} ->', "{text} {0}", [("{text}", "{}")]) == (
        '{"t": "{text}"} -> {}\n\n{"t": "{text} {0}"} ->'
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"kind": "sing"},
            "kind is 'sing', expected one of text, completion, chat, classify, summarize",
        ),
        ({"kind": "classify", "template": "no text"}, "holds {text} nowhere, expected once"),
        ({"kind": "classify", "template": "{text}{text}"}, "holds {text} twice, expected once"),
        ({"kind": "classify", "template": "{text}: "}, "ends in a space"),
        ({"kind": "classify", "template": 3}, "the template is 3"),
        (
            {"kind": "classify", "labels": ["one"]},
            "needs at least two labels, and there is only 'one'",
        ),
        ({"kind": "classify", "labels": ["a", "b", "a"]}, "the label 'a' is given twice"),
        ({"kind": "classify", "labels": ["a", ""]}, "the label '' is empty"),
        ({"kind": "classify", "labels": ["a", " b"]}, "the label ' b' is empty or has white space"),
        ({"kind": "classify", "labels": ["a", 1]}, "expected a list of texts"),
        ({"kind": "classify", "labels": "ab"}, "expected a list of texts"),
        ({"kind": "classify", "head": 1}, "head is 1, expected true or false"),
        ({"kind": "chat", "labels": ["a", "b"]}, "belong to the kind classify, not to chat"),
    ],
)
def test_values_that_make_no_task(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Task(**values)
    assert said in str(caught.value)
    (tmp_path / "gptx_task.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError) as read:
        read_task(tmp_path)
    assert said in str(read.value) and "gptx_task.json" in str(read.value)


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"kind": "text", "colour": 1}', '{"kind": ["text"]}']
)
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "gptx_task.json").write_text(text)
    with pytest.raises(ArtifactError, match="gptx_task.json"):
        read_task(tmp_path)


def test_a_template_is_checked_where_it_is_used() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        prompt("Label:", "x")

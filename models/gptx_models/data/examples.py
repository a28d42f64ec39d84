"""Turn records into the examples of a task: a text and its answers. Knows no tokens and no models.

The fields of a record are found by the names that they usually have, or by names that are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.artifact.json_files import a_json_kind
from gptx.errors import UsageError
from gptx_models.data.compressed_text import Read
from gptx_models.data.record_files import RECORDS, Record, records
from gptx_models.data.text_files import list_files

Names = Mapping[str, Sequence[str]]  # a role -> the names its field may have, likeliest first

# The roles of a record, by task. A task may have several shapes: a record must have one of them.
SHAPES: Mapping[str, Sequence[Names]] = {
    "completion": (
        {"prompt": ("prompt",), "completion": ("completion", "response")},
        {"instruction": ("instruction",), "output": ("output", "response")},
    ),
    "chat": ({"messages": ("messages", "conversations")},),
    "classify": (
        {
            "text": ("text", "sentence", "content", "review", "query", "utterance", "question"),
            "label": ("label_text", "label", "category", "intent", "class", "sentiment"),
        },
    ),
    "summarize": (
        {
            "text": ("text", "document", "article", "source", "dialogue"),
            "summary": ("summary", "target", "highlights"),
        },
    ),
}
_INPUT = ("input", "context")  # the text that an instruction is about; optional

INSTRUCTION_TEMPLATE = "### Instruction:\n{text}\n\n### Response:"  # Alpaca's


@dataclass(frozen=True)
class Example:
    """A text and its answers, or a conversation."""

    place: str  # file and line, for messages
    text: str = ""
    # The first is the one to train on. A summary may have several, to be scored against.
    answers: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()  # chat only, instead of text and answers


@dataclass(frozen=True)
class Examples:
    found: list[Example]
    instructions: bool  # the texts are instructions: they belong into INSTRUCTION_TEMPLATE
    blank: int  # number of records without text or answer, which are left out


def read_examples(
    paths: Sequence[Path],
    kind: str,
    *,
    fields: Mapping[str, str] | None = None,
    read: Read | None = None,
) -> Examples:
    """The examples in files or folders.

    kind: a task of SHAPES. fields: role -> name of its field (see parse_fields), for roles whose
    field has an unusual name. read: called with the number of bytes read since its last call.
    Raises UsageError, which names the file and the line.
    """
    found: list[Example] = []
    blank, roles = 0, None
    for file in list_files(paths, kinds=RECORDS):
        for place, record in records(file, read):
            roles = roles or _roles(record, kind, fields or {}, place)
            example = _example(record, roles, place)
            if example.messages or (example.text.strip() and all(map(str.strip, example.answers))):
                found.append(example)
            else:
                blank += 1
    if not found:
        raise UsageError(f"there is no record with text in {', '.join(map(str, paths))}")
    return Examples(found, instructions="instruction" in (roles or {}), blank=blank)


def parse_fields(text: str, kind: str) -> dict[str, str]:
    """ "text=sentence,label=category" -> {"text": "sentence", "label": "category"}.

    Raises UsageError for a role that the task does not have, or an empty name.
    """
    known = dict.fromkeys(role for shape in SHAPES[kind] for role in shape)
    pairs = [
        (role.strip(), field.strip())
        for role, _, field in (part.partition("=") for part in text.split(","))
    ]
    if any(role not in known or not field for role, field in pairs):
        raise UsageError(
            f"--fields {text} does not fit:"
            f" {kind} knows {','.join(f'{role}=FIELD' for role in known)}"
        )
    return dict(pairs)


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels, sorted: first those that are not numbers, then the numbers by value."""
    labels = {example.answers[0] for example in examples}
    return tuple(sorted(labels, key=lambda label: (int(label) if label.isdecimal() else -1, label)))


def _roles(record: Record, kind: str, fields: Mapping[str, str], place: str) -> dict[str, str]:
    """role -> name of its field, as found in one record.

    Raises UsageError if a field is missing.
    """
    for shape in SHAPES[kind]:
        roles = {
            role: _field(record, (fields[role],) if role in fields else names)
            for role, names in shape.items()
        }
        if all(roles.values()):
            return {role: field for role, field in roles.items() if field}
    needed = " or ".join(
        " and ".join(fields.get(role, role) for role in shape) for shape in SHAPES[kind]
    )
    example = ",".join(f"{role}=FIELD" for role in SHAPES[kind][0])
    raise UsageError(
        f"{place} has {', '.join(record) or 'no fields'}, and {kind} needs {needed}:"
        f" --fields {example} names them"
    )


def _field(record: Record, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _example(record: Record, roles: Mapping[str, str], place: str) -> Example:
    def value(role: str) -> Any:
        if roles[role] not in record:
            raise UsageError(
                f"{place} has no field {roles[role]}; it has {', '.join(record) or 'none'}"
            )
        return record[roles[role]]

    def text(role: str) -> str:
        return _text(value(role), f"{place}: the field {roles[role]}")

    if "messages" in roles:
        messages = _messages(value("messages"), f"{place}: the field {roles['messages']}")
        return Example(place, messages=messages)
    if "prompt" in roles:
        return Example(place, text("prompt"), (text("completion"),))
    if "instruction" in roles:
        asked = _with_input(text("instruction").strip(), record, place)
        return Example(place, asked, (text("output").strip(),))
    if "label" in roles:
        label = value("label")
        if isinstance(label, bool | int | float):
            label = json.dumps(label)
        label = _text(label, f"{place}: the field {roles['label']}").strip()
        if not label:
            raise UsageError(f"{place} has an empty {roles['label']}")
        return Example(place, text("text").strip(), (label,))
    summaries = value("summary")
    summaries = summaries if isinstance(summaries, list) else [summaries]
    field = f"{place}: the field {roles['summary']}"
    answers = tuple(_text(summary, field).strip() for summary in summaries)
    return Example(place, text("text").strip(), answers or ("",))


def _with_input(instruction: str, record: Record, place: str) -> str:
    """The instruction, with the record's input behind it if it has one, as in Alpaca."""
    field = _field(record, _INPUT)
    if not instruction or not field or not record[field]:
        return instruction
    about = _text(record[field], f"{place}: the field {field}").strip()
    return f"{instruction}\n\n### Input:\n{about}" if about else instruction


def _text(value: Any, what: str) -> str:
    """The text of a field: a string, or a list of sentences, which a space joins."""
    if isinstance(value, list) and all(isinstance(sentence, str) for sentence in value):
        return " ".join(sentence.strip() for sentence in value)
    if not isinstance(value, str):
        raise UsageError(f"{what} is {a_json_kind(value)}, text is expected")
    return value


_SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's names -> roles


def _messages(value: Any, what: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(
            f"{what} is {'an empty' if value == [] else f'{a_json_kind(value)}, not a'}"
            " list of messages"
        )
    messages = []
    for number, message in enumerate(value, 1):
        if isinstance(message, dict) and "from" in message and "value" in message:
            speaker = message["from"]
            message = {"role": _SPEAKERS.get(speaker, speaker), "content": message["value"]}
        if not (
            isinstance(message, dict)
            and all(isinstance(message.get(key), str) for key in ("role", "content"))
        ):
            raise UsageError(
                f'{what}, message {number}: {{"role": "user", "content": "..."}} is expected'
            )
        messages.append(message)
    if not any(message["role"] == "assistant" for message in messages[1:]):
        raise UsageError(
            f"{what} has no message of the assistant that answers another: there is nothing to"
            " train on"
        )
    return tuple(messages)

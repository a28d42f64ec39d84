"""Records of every file type become examples, and each fault is one clear error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from gptx.errors import UsageError
from gptx_models.data.examples import labels_of, parse_fields, read_examples
from gptx_models.data.record_files import records

QUERIES = [
    {"text": "I am still waiting on my card?", "category": "card_arrival"},
    {"text": 'It says "declined",\nwhy?', "category": "declined_payment"},
    {"text": "Où est ma carte 🐸", "category": "card_arrival"},
]


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    """As Python's own modules write the kind of file that its name says."""
    name = file.name.removesuffix(".xz").removesuffix(".gz")
    out = io.StringIO()
    if name.endswith("sv"):
        writer = csv.DictWriter(
            out, list(records[0]), dialect="excel-tab" if name.endswith(".tsv") else "excel"
        )
        writer.writeheader()
        writer.writerows(records)
    elif name.endswith(".jsonl"):
        out.writelines(json.dumps(record) + "\n" for record in records)
    else:
        json.dump(records, out, indent=4, ensure_ascii=False)
    data = out.getvalue().encode()
    file.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(file.suffix, bytes)(data))
    return file


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.xz", "a.JSON.gz"])
def test_records_of_every_kind_of_file(tmp_path: Path, name: str):
    assert [record for _, record in records(write(tmp_path / name, QUERIES))] == QUERIES


def test_places_of_records(tmp_path: Path):
    assert [place for place, _ in records(write(tmp_path / "a.csv", QUERIES))] == [
        f"{tmp_path}/a.csv, line {line}" for line in (2, 3, 5)
    ]


def test_classify(tmp_path: Path):
    read = read_examples([write(tmp_path / "a.csv", QUERIES)], "classify")
    assert [(example.text, example.answers) for example in read.found] == [
        (query["text"], (query["category"],)) for query in QUERIES
    ]
    assert labels_of(read.found) == ("card_arrival", "declined_payment") and not read.instructions


def test_labels_may_be_numbers(tmp_path: Path):
    rows = [{"sentence": "so so", "label": label} for label in (10, 9, True, 10)]
    found = read_examples([write(tmp_path / "a.jsonl", rows)], "classify").found
    assert labels_of(found) == ("true", "9", "10")


def test_fields_of_other_names(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [{"text": "an id", "tweet": " hello ", "mood": "good"}])
    fields = parse_fields("text=tweet, label = mood", "classify")
    assert fields == {"text": "tweet", "label": "mood"}
    [example] = read_examples([file], "classify", fields=fields).found
    assert (example.text, example.answers) == ("hello", ("good",))


@pytest.mark.parametrize("text", ["tweet", "summary=x", "text=", "text=a,"])
def test_fields_that_do_not_fit(text: str):
    with pytest.raises(UsageError, match="classify knows text=FIELD,label=FIELD"):
        parse_fields(text, "classify")


def test_summaries(tmp_path: Path):
    rows = [
        {"source": ["One.", " Two. "], "target": ["Short.", "Brief."], "paper_id": "x"},
        {"source": "A text.", "target": "Its summary."},
        {"source": "A text.", "target": [["First.", "Second."]]},
    ]
    found = read_examples([write(tmp_path / "a.jsonl", rows)], "summarize").found
    assert [(example.text, example.answers) for example in found] == [
        ("One. Two.", ("Short.", "Brief.")),
        ("A text.", ("Its summary.",)),
        ("A text.", ("First. Second.",)),
    ]


def test_instructions_with_and_without_input(tmp_path: Path):
    rows = [
        {"instruction": "Add.", "output": "3"},
        {"instruction": "Add.", "input": "1 and 2", "output": "3 "},
        {"instruction": "Add.", "input": "", "output": ""},
    ]
    read = read_examples([write(tmp_path / "a.json", rows)], "completion")
    assert read.instructions and read.blank == 1
    assert [(example.text, example.answers) for example in read.found] == [
        ("Add.", ("3",)),
        ("Add.\n\n### Input:\n1 and 2", ("3",)),
    ]


def test_prompts_and_completions_are_taken_as_they_stand(tmp_path: Path):
    [example] = read_examples(
        [write(tmp_path / "a.jsonl", [{"prompt": "2 + 2 =", "completion": " 4\n"}])], "completion"
    ).found
    assert (example.text, example.answers) == ("2 + 2 =", (" 4\n",))


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def test_conversations_in_both_forms(tmp_path: Path):
    theirs = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    for name, messages in (("messages", TALK), ("conversations", theirs)):
        [example] = read_examples([write(tmp_path / "a.jsonl", [{name: messages}])], "chat").found
        assert list(example.messages) == TALK


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        (
            "classify",
            "a.csv",
            "text,category\none,x\ntwo\n",
            "a.csv, line 3 has 1 fields, and the first line names 2",
        ),
        (
            "classify",
            "a.csv",
            "text,text\n",
            "a.csv, line 1 must name every field, each once; it is text, text",
        ),
        (
            "classify",
            "a.csv",
            'text,label\n"a"b,x\n',
            "a.csv, line 2 is broken: ',' expected after '\"'",
        ),
        (
            "classify",
            "a.csv",
            'text,label\nb,x\n"a,x\n',
            "a.csv, line 3 is broken: unexpected end of data",
        ),
        (
            "classify",
            "a.csv",
            "one,two\na,b\n",
            "a.csv, line 2 has one, two, and classify needs text and label",
        ),
        ("classify", "a.csv", "", "there is no record with text in "),
        (
            "classify",
            "a.jsonl",
            '{"text": "a", "label": " "}',
            "a.jsonl, line 1 has an empty label",
        ),
        (
            "classify",
            "a.jsonl",
            '{"text": "a", "label": null}',
            "a.jsonl, line 1: the field label is a null, text is",
        ),
        (
            "classify",
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}',
            "a.jsonl, line 2 has no field label",
        ),
        (
            "completion",
            "a.json",
            '{"prompt": ""}',
            "a.json is a JSON object: a list of records is expected",
        ),
        ("completion", "a.json", "[3]", "a.json, record 1 is a JSON number: an object is expected"),
        (
            "completion",
            "a.json",
            "[\n{,}]",
            "a.json is not JSON: Expecting property name enclosed in double quotes",
        ),
        ("completion", "a.json", "{}\n{}", "(line 2, column 1); a file with a record a line is"),
        (
            "completion",
            "a.jsonl",
            "{}",
            "line 1 has no fields, and completion needs prompt and completion or",
        ),
        (
            "completion",
            "a.jsonl",
            '{"prompt": [3], "completion": ""}',
            "line 1: the field prompt is a list, text",
        ),
        (
            "summarize",
            "a.jsonl",
            '{"text": "a", "summary": [3]}',
            "line 1: the field summary is a number, text",
        ),
        (
            "chat",
            "a.jsonl",
            '{"messages": []}',
            "line 1: the field messages is an empty list of messages",
        ),
        (
            "classify",
            "a.jsonl",
            '{"text": {}, "label": "b"}',
            "line 1: the field text is an object, text is expected",
        ),
        (
            "chat",
            "a.jsonl",
            '{"messages": "Hi"}',
            "line 1: the field messages is a text, not a list of messages",
        ),
        (
            "chat",
            "a.jsonl",
            '{"messages": [{"role": "user"}]}',
            'message 1: {"role": "user", "content": "..."} is',
        ),
        (
            "chat",
            "a.jsonl",
            json.dumps({"messages": TALK[:1]}),
            "line 1: the field messages has no message of the",
        ),
        (
            "chat",
            "a.txt",
            "Hi",
            "a.txt is of an unknown kind: .jsonl, .json, .csv, .tsv, or one of these with .xz",
        ),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, kind: str, name: str, content: str, said: str):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UsageError) as caught:
        read_examples([tmp_path / name], kind)
    assert said in str(caught.value) and "\n" not in str(caught.value)

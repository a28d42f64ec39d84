"""What callers may give as response_format and json_schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptx.engine.grammar import Grammar, read_grammar
from gptx.errors import UsageError

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "null"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))


@pytest.mark.parametrize(
    "given",
    [
        SCHEMA,
        json.dumps(SCHEMA, indent=2),
        Grammar("json_schema", TEXT),
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "name": "x", "schema": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
        json.dumps({"type": "json_object", "schema": SCHEMA}),
    ],
)
def test_spellings_of_one_schema(given: Any) -> None:
    assert read_grammar(given) == Grammar("json_schema", TEXT)


def test_the_order_of_properties_is_kept() -> None:
    assert read_grammar(json_schema=SCHEMA) == Grammar("json_schema", TEXT)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        (True, Grammar("json_schema", "true")),
        ("false", Grammar("json_schema", "false")),
        ({}, Grammar("json_schema", "{}")),
        ({"type": "json_object"}, Grammar("json_schema", '{"type":"object"}')),
        ({"type": "string"}, Grammar("json_schema", '{"type":"string"}')),
        ({"type": "regex", "regex": "a+"}, Grammar("regex", "a+")),
        ({"type": "lark", "lark": "start: A"}, Grammar("lark", "start: A")),
        (
            {"type": "grammar", "syntax": "lark", "definition": "start: A"},
            Grammar("lark", "start: A"),
        ),
        ({"type": "grammar", "syntax": "regex", "definition": "a"}, Grammar("regex", "a")),
    ],
)
def test_other_spellings(given: Any, expected: Grammar | None) -> None:
    assert read_grammar(given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, "response_format is 5, expected a JSON schema"),
        ([SCHEMA], "expected a JSON schema"),
        ("[0-9]+", 'response_format is not JSON: .*: a regex is given as {"type": "regex"'),
        ("5", "response_format is 5"),
        ({"type": "regex"}, r'expected {"type": "regex", "regex": "..."}'),
        ({"type": "regex", "regex": 5}, "expected"),
        ({"type": "regex", "regex": "a", "flags": "i"}, "expected"),
        ({"type": "json_schema"}, "expected"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "shema": 1}}, "expected"),
        ({"type": "json_schema", "json_schema": {"schema": 5}}, "schema is 5, expected a JSON"),
        ({"type": "text", "schema": SCHEMA}, r'expected {"type": "text"}'),
        ({"type": "grammar", "syntax": "gbnf", "definition": ""}, "expected"),
        ({"enum": [float("nan")]}, "response_format is not JSON"),
        ({"enum": [{1, 2}]}, "response_format is not JSON: .* set"),
        ('{"const": 1e999}', "response_format is not JSON"),
        ('{"const": "\\ud800"}', "half a surrogate pair"),
        ("[" * 200 + "]" * 200, "nested"),
    ],
)
def test_others_are_one_clear_error(given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_grammar(given)


def test_a_dict_that_holds_itself() -> None:
    loop: dict[str, Any] = {}
    loop["not"] = loop
    with pytest.raises(UsageError, match="not JSON"):
        read_grammar(json_schema=loop)


def test_both_ways_at_once() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        read_grammar({"type": "text"}, json_schema=SCHEMA)

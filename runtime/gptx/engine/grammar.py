"""The grammar that a text must follow, as a caller gives it: a JSON schema, a regex or Lark.

`response_format=` or `json_schema=` in, a Grammar out. This file checks the form of what is given,
not the grammar itself: structure.py compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptx.artifact.json_files import parse_json
from gptx.errors import UsageError, shown

Kind = Literal["json_schema", "regex", "lark"]
NAMES: dict[Kind, str] = {
    "json_schema": "JSON schema",
    "regex": "regex",
    "lark": "Lark grammar",
}
# Values of "type" that make a dict a response format. JSON Schema's types have other names.
TYPES = ("text", "json_object", "json_schema", "regex", "lark", "grammar")
_EXPECTED = (
    "a JSON schema (as a dict, a boolean or JSON text), or a dict whose type is one of "
    + ", ".join(TYPES)
)


@dataclass(frozen=True)
class Grammar:
    """A grammar in the caller's words. Equal grammars are compiled once.

    source: for "json_schema" the schema as JSON text; for "regex" a regular expression in the
    syntax of Rust's crate regex, which the whole text must match; for "lark" a grammar in
    llguidance's form of Lark, with the rule `start`.
    """

    kind: Kind
    source: str


def read_grammar(response_format: Any = None, json_schema: Any = None) -> Grammar | None:
    """The grammar that a call asks for; None for free text.

    response_format: a Grammar, a JSON schema (a dict, a boolean or JSON text), or a dict in the
    spelling of OpenAI and llama.cpp:

    - {"type": "text"}: free text
    - {"type": "json_object"}: any JSON object; a "schema" beside it is obeyed
    - {"type": "json_schema", "json_schema": {"schema": {...}}}, or with the schema beside the type
    - {"type": "regex", "regex": "[0-9]+"}
    - {"type": "lark", "lark": "start: ..."}
    - {"type": "grammar", "syntax": "lark" or "regex", "definition": "..."}

    json_schema: a JSON schema, for short.

    Raises UsageError for anything else.
    """
    if json_schema is not None:
        if response_format is not None:
            raise UsageError("response_format and json_schema are given: give one of them")
        return _schema(json_schema, "json_schema")
    if response_format is None or isinstance(response_format, Grammar):
        return response_format
    given = response_format
    if isinstance(given, str):
        advice = ': a regex is given as {"type": "regex", "regex": ...}'
        given = parse_json(given, "response_format", UsageError, advice=advice)
    if isinstance(given, Mapping) and given.get("type") in TYPES:
        return _typed(given)
    if isinstance(given, Mapping | bool):
        return _schema(given, "response_format")
    raise UsageError(f"response_format is {shown(given)}, expected {_EXPECTED}")


def _typed(given: Mapping[str, Any]) -> Grammar | None:
    """The grammar of a dict whose "type" is one of TYPES."""
    match dict(given):
        case {"type": "text", **rest} if not rest:
            return None
        case {"type": "json_object", **rest} if rest.keys() <= {"schema"}:
            return _schema(rest.get("schema", {"type": "object"}), "schema")
        case {"type": "json_schema", "json_schema": {"schema": schema, **rest}, **more} if (
            _only_notes(rest) and not more
        ):
            return _schema(schema, "schema")
        case {"type": "json_schema", "schema": schema, **rest} if _only_notes(rest):
            return _schema(schema, "schema")
        case {"type": "regex", "regex": str(source), **rest} if not rest:
            return _grammar("regex", source)
        case {"type": "lark", "lark": str(source), **rest} if not rest:
            return _grammar("lark", source)
        case {
            "type": "grammar",
            "syntax": "lark" | "regex" as kind,
            "definition": str(source),
            **rest,
        } if not rest:
            return _grammar(kind, source)
    forms = {
        "text": '{"type": "text"}',
        "json_object": '{"type": "json_object"}',
        "json_schema": '{"type": "json_schema", "json_schema": {"schema": {...}}}',
        "regex": '{"type": "regex", "regex": "..."}',
        "lark": '{"type": "lark", "lark": "start: ..."}',
        "grammar": '{"type": "grammar", "syntax": "lark" or "regex", "definition": "..."}',
    }
    raise UsageError(f"response_format is {shown(given)}, expected {forms[given['type']]}")


def _grammar(kind: Kind, source: str) -> Grammar:
    """A regex or a Lark grammar. Raises UsageError for a text that is none."""
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {NAMES[kind]} holds half a surrogate pair: {error}") from error
    return Grammar(kind, source)


def _only_notes(fields: Mapping[str, Any]) -> bool:
    """True if no field changes which texts are valid. gptx is always strict."""
    return fields.keys() <= {"name", "description", "strict"}


def _schema(value: Any, name: str) -> Grammar:
    """The grammar of a JSON schema: a dict, a boolean or JSON text. Raises UsageError."""
    schema = parse_json(value, name, UsageError) if isinstance(value, str) else value
    if not isinstance(schema, Mapping | bool):
        raise UsageError(
            f"{name} is {shown(schema)}, expected a JSON schema: an object or a boolean"
        )
    try:
        source = json.dumps(schema, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    parse_json(source, name, UsageError)  # refuses half surrogate pairs and deep nesting
    return Grammar("json_schema", source)

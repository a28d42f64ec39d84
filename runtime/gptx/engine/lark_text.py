"""Find in a Lark grammar what llguidance would pass over in silence: an error or a note.

A grammar's text in, the text with checked JSON schemas out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gptx.artifact.json_files import parse_json
from gptx.engine.schema_keywords import prepare_schema
from gptx.errors import UsageError

# Attributes of a rule, as in name[temperature=0.5]: /.*/
_REFUSED = {
    "temperature": "give the temperature with the call",
    "max_tokens": "limit the text by a repetition such as /.{0,20}/",
    "stop": "use suffix= or lazy",
}
_OPTIONS = ("no_forcing", "allow_invalid_utf8", "allow_initial_skip", "ignore_once")
# What may hold any characters: texts, comments and regexes; and where JSON begins
_PARTS = re.compile(
    r"""
      "(?:\\.|[^"\\\n])*"
    | //[^\n]* | \#[^\n]*
    | /(?:\\.|[^/\\\n])+/
    | %(?P<directive>json|llguidance)\s*(?={)
    """,
    re.VERBOSE,
)


def prepare_lark(source: str) -> tuple[str, list[str]]:
    """The grammar as llguidance should read it, and a note for each keyword without effect.

    Its JSON schemas (%json) are prepared as one that stands alone (schema_keywords.py).

    Raises UsageError for what llguidance would pass over.
    """
    kept, notes, at = [], [], 0
    while part := _PARTS.search(source, at):
        _check_attributes(source[at : part.start()])
        kept.append(source[at : part.end()])
        at = part.end()
        if part["directive"]:
            value, at = _json(source, at)
            if part["directive"] == "json":
                value, more = prepare_schema(value)
                notes += more
            elif unknown := [name for name in value if name not in _OPTIONS]:
                raise UsageError(f"%llguidance has an unknown option {unknown[0]}")
            kept.append(json.dumps(value))
    _check_attributes(source[at:])
    return "".join([*kept, source[at:]]), notes


def _json(source: str, at: int) -> tuple[Any, int]:
    """The JSON object that begins at a place in the text, and the place behind it."""
    try:
        _, end = json.JSONDecoder().raw_decode(source, at)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"JSON that cannot be read: {error}") from error
    return parse_json(source[at:end], "its JSON", UsageError), end


def _check_attributes(code: str) -> None:
    """Raise UsageError for an attribute that gptx does not obey.

    code: a part of the grammar without texts, comments and regexes.
    """
    for name, advice in _REFUSED.items():
        if re.search(rf"\b{name}\s*=", code):
            raise UsageError(f"has {name}=, which gptx does not obey: {advice}")

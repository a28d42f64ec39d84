"""Find in a JSON schema what llguidance would pass over in silence, and make it an error or a note.

llguidance refuses keywords of JSON Schema that it does not implement, such as `not`. This file
covers the rest: names that are no keywords, numbers that it rounds, patterns that it reads in
another way, and settings of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from gptx.errors import UsageError, first_of, shown

# How the JSON is written: no line breaks, at most one space behind a comma or a colon. A small
# model would otherwise write spaces without end. Without \u escapes, because llguidance 1.9 lets
# "\u0061" pass for a name other than "a". So of the control characters, only \b \f \n \r \t can be
# written.
STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
}

# Keywords with a schema, a list of schemas, or an object of schemas
_SCHEMA = ("items", "additionalItems", "additionalProperties")
_SCHEMAS = ("items", "prefixItems", "allOf", "anyOf", "oneOf")
_NAMED_SCHEMAS = ("properties", "patternProperties")
# Keywords of bounds, and the direction in which a bound becomes stricter
_BOUNDS = {
    "minimum": math.inf,
    "exclusiveMinimum": math.inf,
    "maximum": -math.inf,
    "exclusiveMaximum": -math.inf,
}
# The other keywords of all drafts that allow or forbid something: llguidance implements or refuses
# them, if it does not take them for those of another draft
_ASSERTIONS = """
    $ref $recursiveRef $recursiveAnchor $dynamicRef $dynamicAnchor type const enum not if then else
    multipleOf minLength maxLength pattern format
    minItems maxItems uniqueItems unevaluatedItems contains minContains maxContains
    required minProperties maxProperties propertyNames unevaluatedProperties
    dependencies dependentRequired dependentSchemas
"""
_ANNOTATIONS = """
    $schema $id id $anchor $comment $defs definitions title description default examples example
    deprecated readOnly writeOnly contentEncoding contentMediaType contentSchema
"""
_KNOWN = {*_SCHEMA, *_SCHEMAS, *_NAMED_SCHEMAS, *_BOUNDS} | {
    *_ASSERTIONS.split(),
    *_ANNOTATIONS.split(),
}
EXACT = 2**53  # llguidance reads numbers as float64, which holds all integers up to this one
HUGE = 10**300  # near the largest float64
# llguidance builds an automaton with a state for each remainder: minutes for a million of them.
MOST_REMAINDERS = 10_000

Place = tuple[str, dict[str, Any]]  # "#/properties/age", and the schema there


def prepare_schema(schema: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema as llguidance should read it, and a note for each keyword without effect.

    The result has STYLE under "x-guidance", changed by the schema's own settings there. It has no
    $schema, because llguidance passes over keywords that are unknown in the draft named there.
    Parts of the schema that is given are changed.

    Raises UsageError for what llguidance would get wrong.
    """
    if schema is False:
        raise UsageError("false: no text is valid")
    root: dict[str, Any] = {} if schema is True else schema
    style = root.get("x-guidance", {})
    if not isinstance(style, dict) or "lenient" in style:
        raise UsageError(
            f"x-guidance is {shown(style)}, expected settings of llguidance other than lenient"
        )
    writes_all = "u" in str(style.get("json_allowed_escapes", STYLE["json_allowed_escapes"]))
    places = list(_places(root))
    notes: list[str] = []
    for where, found in places:
        if found.get("uniqueItems") is False:  # asks for nothing, and llguidance refuses it
            del found["uniqueItems"]
        _move_bounds(found)
        _check_values(where, found)
        _check_texts(where, found)
        if not writes_all:
            _check_control_characters(where, found)
            notes += _mend_patterns(where, found)
        notes += _notes(where, found, used=_used_by_root(places) if found is root else set())
    _check_remainders(places)
    kept = {name: value for name, value in root.items() if name != "$schema"}
    return {**kept, "x-guidance": {**STYLE, **style}}, notes


def _places(root: dict[str, Any]) -> Iterator[Place]:
    """The schema itself and all schemas in it that are used, also by $ref, each once.

    Raises UsageError for a $ref that does not point to a place in the schema.
    """
    waiting: list[tuple[str, Any]] = [("#", root)]
    seen: set[int] = set()
    while waiting:
        where, schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue  # a boolean, or no schema: llguidance says so
        seen.add(id(schema))
        yield where, schema
        waiting += [(f"{where}/{name}", schema[name]) for name in _SCHEMA if name in schema]
        for name in _SCHEMAS:
            if isinstance(schema.get(name), list):
                waiting += [(f"{where}/{name}/{at}", one) for at, one in enumerate(schema[name])]
        for name in _NAMED_SCHEMAS:
            if isinstance(schema.get(name), dict):
                waiting += [(f"{where}/{name}/{key}", one) for key, one in schema[name].items()]
        if "$ref" in schema:
            waiting.append((str(schema["$ref"]), _pointed(root, where, schema["$ref"])))


def _pointed(root: dict[str, Any], where: str, reference: Any) -> Any:
    """What a $ref such as "#/$defs/name" points to."""
    start, *parts = unquote(str(reference)).split("/")
    found: Any = root if start == "#" else None
    for part in parts:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        raise UsageError(
            f"$ref in {where} is {shown(reference)}, expected a place in the schema, as in "
            '"#/$defs/name"'
        )
    return found


def _used_by_root(places: list[Place]) -> set[str]:
    """The root's own names: x-guidance, and those that hold schemas for $ref ("components")."""
    pointers = [str(schema["$ref"]).split("/") for _, schema in places if "$ref" in schema]
    return {"x-guidance", *(pointer[1] for pointer in pointers if len(pointer) > 1)}


def _notes(where: str, schema: dict[str, Any], *, used: set[str]) -> list[str]:
    """A note for each part of this schema that changes nothing, though its author may expect it.

    used: names that have a use in this schema besides the keywords.
    """
    notes = []
    known = _KNOWN | used
    unknown = [
        name
        for name in schema
        if name not in known and (name == "x-guidance" or not name.startswith("x-"))
    ]
    if unknown:
        notes.append(f"{first_of(unknown, 8)} in {where}: unknown to JSON Schema, without effect")
    least = schema.get("minProperties", 0)
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if is_open and isinstance(least, int) and least > 1:
        notes.append(
            f"minProperties in {where}: a name that the schema does not list may occur twice, and "
            "then counts twice"
        )
    return notes


def _move_bounds(schema: dict[str, Any]) -> None:
    """Move bounds that float64 does not hold inwards to numbers that it holds, in place."""
    for name, inwards in _BOUNDS.items():
        bound = schema.get(name)
        if isinstance(bound, int) and EXACT < abs(bound) < HUGE:
            near = float(bound)
            outside = near > bound if inwards < 0 else near < bound
            schema[name] = math.nextafter(near, inwards) if outside else near


def _check_values(where: str, schema: dict[str, Any]) -> None:
    """Raise UsageError for a value with a number that llguidance would write in other digits."""
    for name in ("const", "enum"):
        for number in _leaves(schema.get(name)):
            if isinstance(number, int | float) and abs(number) > EXACT:
                raise UsageError(
                    f"{name} in {where} has {shown(number)}, which llguidance would round: "
                    "expected numbers up to 2**53"
                )


def _leaves(value: Any) -> Iterator[Any]:
    """The texts, numbers, booleans and nulls in a JSON value; names are left out."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _check_remainders(places: list[Place]) -> None:
    """Raise UsageError if multipleOf would take too long. Several may meet in one number."""
    together = 1
    for where, schema in places:
        together = math.lcm(together, _digits(schema.get("multipleOf")))
        if together > MOST_REMAINDERS:
            raise UsageError(
                f"multipleOf in {where} is {shown(schema['multipleOf'])}, which takes too long: the"
                f" digits of all multipleOf have no common multiple up to {MOST_REMAINDERS:,}"
            )


def _digits(multiple: Any) -> int:
    """A multipleOf without its decimal point and outer zeros: 25 for 0.25 and for 2500."""
    digits = re.sub(r"[eE].*|[-.]", "", repr(multiple)).strip("0")
    return int(digits) if digits.isdecimal() else 1


def _check_texts(where: str, schema: dict[str, Any]) -> None:
    """Raise UsageError for a pattern or format that llguidance reads in another way."""
    for pattern in _patterns(schema):
        if operator := _set_operator(pattern):
            raise UsageError(
                f"the pattern {shown(pattern)} in {where} has {operator} within [...], which means"
                " something else in llguidance: put a backslash before it"
            )
    if schema.get("format") == "unknown":  # llguidance's own name for any text
        raise UsageError(f'format in {where} is "unknown", which is no format of JSON Schema')


def _patterns(schema: dict[str, Any]) -> list[str]:
    """The patterns of this schema, for its own text and for the names of an object."""
    of_names = schema.get("patternProperties")
    found = [schema.get("pattern"), *(of_names if isinstance(of_names, dict) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


# But for \b \f \n \r \t, which STYLE can write
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_ESCAPES = (
    'to write it as an escape such as \\u0001, give the schema "x-guidance": '
    '{"json_allowed_escapes": "nrbtfu\\\\\\""}'
)
# What nothing that STYLE can write matches. Of a single control character, or of one in the middle
# of a text, llguidance would leave that character out instead.
_UNWRITABLE = r"\x01\x02"


def _check_control_characters(where: str, schema: dict[str, Any]) -> None:
    """Raise UsageError for a value with a control character, which llguidance would leave out."""
    for name in ("const", "enum"):
        texts = (leaf for leaf in _leaves(schema.get(name)) if isinstance(leaf, str))
        if any(map(_CONTROL.search, texts)):
            raise UsageError(f"{name} in {where} has a control character: {_ESCAPES}")


def _mend_patterns(where: str, schema: dict[str, Any]) -> list[str]:
    """Let patterns match nothing where they ask for control characters, in place.

    Returns a note for each of these patterns.
    """
    notes = []

    def mended(pattern: Any) -> Any:
        new = _without_control(pattern) if isinstance(pattern, str) else pattern
        if new != pattern:
            notes.append(
                f"the pattern {shown(pattern)} in {where} has a control character, so texts with it"
                f" are left out; {_ESCAPES}"
            )
        return new

    if "pattern" in schema:
        schema["pattern"] = mended(schema["pattern"])
    of_names = schema.get("patternProperties")
    if isinstance(of_names, dict):
        schema["patternProperties"] = {mended(name): one for name, one in of_names.items()}
    return notes


def _without_control(pattern: str) -> str:
    """The pattern with a set that nothing matches for each control character.

    A set [...] of control characters alone becomes such a set, too.
    """
    return _TOKEN.sub(_unwritable, pattern)


def _unwritable(found: re.Match[str]) -> str:
    token, body = found[0], found["body"]
    if not token.startswith("["):
        return f"[{token}{_UNWRITABLE}]" if _CONTROL.fullmatch(_character(token)) else token
    has_others = not all(map(_CONTROL.fullmatch, _members(body)))
    return token if has_others or found["negated"] or not body else f"[{body}{_UNWRITABLE}]"


def _members(body: str) -> Iterator[str]:
    """The characters of a set, whose parts are characters and ranges such as a-z.

    Of a range, those up to \\x80: the ones behind are no control characters, either.
    """
    parts = [_character(part) for part in _parts(body)]
    for at, part in enumerate(parts):
        if part == "-" and 0 < at < len(parts) - 1:
            first, last = parts[at - 1], parts[at + 1]
            if len(first) == len(last) == 1:
                yield from map(chr, range(ord(first), min(ord(last), 0x80) + 1))
        else:
            yield part


_HEXADECIMAL = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[xuU]\{[0-9a-fA-F]+\})"
_PART = re.compile(rf"{_HEXADECIMAL}|\\.|.", re.DOTALL)
_TOKEN = re.compile(
    rf"{_HEXADECIMAL}|\\.|\[(?P<negated>\^?)(?P<body>(?:\\.|[^\]\\])*)\]|.", re.DOTALL
)


def _parts(pattern: str) -> list[str]:
    """The characters of a pattern; an escape is one part."""
    return _PART.findall(pattern)


def _character(part: str) -> str:
    """The character that a part of a pattern stands for; the part itself if it is none."""
    if digits := re.fullmatch(r"\\[xuU]\{?([0-9a-fA-F]+)\}?", part):
        code = int(digits[1], 16)
        return chr(code) if code < 0x110000 else part
    return {"\\a": "\a", "\\v": "\v"}.get(part, part)


def _set_operator(pattern: str) -> str | None:
    """The first of Rust's operators on character sets ([ && -- ~~) within [...]; None without."""
    inside = False
    for part in re.findall(r"\\.|&&|--|~~|.", pattern, re.DOTALL):
        if inside and part in ("[", "&&", "--", "~~"):
            return part
        if part in ("[", "]"):
            inside = part == "["
    return None

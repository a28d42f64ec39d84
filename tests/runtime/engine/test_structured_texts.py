"""Texts that follow a grammar: JSON that its schema accepts, beside other texts, in all calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptx
from builders.gptx_command import gptx as command
from builders.native_graphs import native_kernels, needs_library
from builders.tiny_artifact import write_artifact
from gptx.engine.speculation import FORCED, Speculation
from gptx.errors import UsageError
from gptx.model import Model

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")
pytestmark = needs_library
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with gptx.load(threads=1) as opened:
        yield opened


@pytest.mark.usefixtures(native_kernels.__name__)
@pytest.mark.parametrize("seed", range(6))
def test_a_text_follows_its_schema(
    model: Model, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With guesses, too: the matcher sees only tokens that are kept.
    monkeypatch.setattr("gptx.engine.speculation.SHORTEST_STEP", -1.0)
    options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_new_tokens": 200}
    found = model.generate("Once upon a time", json_schema=SCHEMA, **options)
    assert found.finish_reason == "stop" and found.text is not None
    jsonschema.validate(json.loads(found.text), SCHEMA)
    pieces = model.stream("Once upon a time", response_format=json.dumps(SCHEMA), **options)
    assert "".join(pieces) == found.text


@pytest.mark.usefixtures(native_kernels.__name__)
def test_forced_tokens_are_guessed_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {f"property_number_{n}": {"type": "boolean"} for n in range(8)}
    schema = {"type": "object", "properties": fields, "required": [*fields]}
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    options: dict[str, Any] = {"response_format": form, "temperature": 0, "max_new_tokens": 300}
    with gptx.load(threads=1, speculate=False) as plain:
        alone = plain.generate("Tell me", **options)
    monkeypatch.setattr("gptx.engine.speculation.SHORTEST_STEP", -1.0)
    judged = {True: [0, 0], False: [0, 0]}  # by whether a grammar forced them: guessed, right

    def judge(_: Speculation, source: int, drafted: int, accepted: int) -> None:
        judged[source == FORCED][0] += drafted
        judged[source == FORCED][1] += accepted

    monkeypatch.setattr(Speculation, "judge", judge)
    with gptx.load(threads=1) as model:
        found = model.generate("Tell me", **options)
    assert found.token_ids == alone.token_ids
    guessed, right = judged[True]
    assert guessed == right > len(found.token_ids) // 5


def test_a_regex_and_free_texts_side_by_side(model: Model) -> None:
    free = model.generate("The cat", max_new_tokens=15, temperature=0).token_ids
    year = {"type": "regex", "regex": "[12][0-9]{3}"}
    handles = [
        model.submit("In the year", response_format=year, temperature=0),
        model.submit("The cat", max_new_tokens=15, temperature=0),
    ]
    text = handles[0].result().text
    assert text is not None and re.fullmatch("[12][0-9]{3}", text)
    assert handles[1].result().token_ids == free


def test_what_is_refused_before_anything_runs(model: Model) -> None:
    steps = model.stats().steps
    for wrong in ({"json_schema": 5}, {"response_format": {"type": "regex", "regex": "("}}):
        with pytest.raises(UsageError):
            model.generate("a", **wrong)
    with pytest.raises(UsageError, match="give one of them"):
        model.generate("a", json_schema=SCHEMA, response_format=SCHEMA)
    assert model.stats().steps == steps


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), "utf-8")
    done = command("run", "Once", "--json-schema", file, "--seed", "1", "--quiet")
    assert done.status == 0, done.err
    jsonschema.validate(json.loads(done.text), SCHEMA)
    file.write_bytes(b"\xff\xfe{")
    done = command("run", "Once", "--json-schema", file)
    assert done.status == 1 and "--json-schema" in done.err
    file.write_text("{")
    done = command("run", "Once", "--json-schema", file)
    assert done.status == 1 and f"--json-schema: {file} is not JSON" in done.err


@pytest.mark.parametrize("limit", [3, 50])
def test_a_model_without_end_tokens_ends_with_its_grammar(tmp_path: Path, limit: int) -> None:
    with gptx.load(write_artifact(tmp_path / "a", eos=[]), threads=1) as model:
        found = model.generate("x", json_schema={"const": "b"}, max_new_tokens=limit)
        assert (found.text, found.finish_reason) == ('"b"', "stop")
        regex = {"type": "regex", "regex": "a+"}
        found = model.generate("x", response_format=regex, max_new_tokens=limit)
        assert found.text and set(found.text) == {"a"} and found.finish_reason == "length"
        with pytest.raises(UsageError, match="regex: only the empty text follows it"):
            model.generate("x", response_format={"type": "regex", "regex": ""})

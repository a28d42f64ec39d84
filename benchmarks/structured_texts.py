"""Texts that a model writes by JSON schemas: is each of them valid?

    python benchmarks/structured_texts.py cases.jsonl --texts 1000

A line of the file is a case of MaskBench with the field "schema". Its schemas are taken in turn,
those that gptx refuses are left out, and texts are drawn until so many have ended. Tokens that
close something get higher logits, as the model would tell stories in strings. jsonschema judges the
texts. The exit status is 1 if one is not valid.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections import Counter, deque
from pathlib import Path
from typing import Any

from jsonschema import validators

import gptx
from gptx.bench.machine import lines, machine
from gptx.errors import GptxError, GptxWarning
from gptx.progress import stage

PROMPT = "Once upon a time there was a king who kept a list of all that he had."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("artifact", nargs="?", type=Path, help="default: the model of gptx")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=400, help="the longest text")
    given = parser.parse_args()
    print("\n".join(lines(machine("llguidance", "jsonschema"))))
    warnings.simplefilter("ignore", GptxWarning)  # of what a schema says and a grammar cannot
    schemas = [json.loads(line)["schema"] for line in given.cases.read_text("utf-8").splitlines()]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    began = time.perf_counter()
    with gptx.load(given.artifact) as model, stage("Texts", total=given.texts) as advance:
        assert model.tokenizer is not None
        closing = [model.tokenizer.encode(one)[-1] for one in ('"', '"}', "]", "}")]
        growing: deque[tuple[Any, gptx.Stream]] = deque()
        for seed in itertools.count():
            if counts["ended"] >= given.texts:
                break
            schema = schemas[seed % len(schemas)]
            options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "json_schema": schema}
            options["logit_bias"] = dict.fromkeys(closing, 5.0)
            try:
                growing.append(
                    (schema, model.submit(PROMPT, max_new_tokens=given.tokens, **options))
                )
            except GptxError:
                counts["refused"] += 1
            if len(growing) == 16:
                schema, stream = growing.popleft()
                found = stream.result()
                if found.finish_reason != "stop":
                    counts["cut at the limit"] += 1
                    continue
                counts["ended"] += 1
                advance(1)
                if not _is_valid(found.text or "", schema):
                    wrong.append(f"{json.dumps(schema):.200}: {found.text:.200}")
    print(f"{dict(counts)}, {len(wrong)} not valid, in {time.perf_counter() - began:,.0f} s")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


def _is_valid(text: str, schema: Any) -> bool:
    try:
        return validators.validator_for(schema)(schema).is_valid(json.loads(text))
    except json.JSONDecodeError:
        return False


if __name__ == "__main__":
    main()

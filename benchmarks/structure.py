"""How structured output treats the JSON schemas of a file: compiled, judged, sampled, timed.

    python benchmarks/structure.py smollm2-int8 cases.jsonl --json docs/benchmarks/structure/x.json

A line of the file is a case of MaskBench: {"name", "schema", "tests": [{"valid", "data"}, ...]}.
Of the artifact only the tokenizer and gptx.json are read.

- Instances are written as JSON and follow the grammar a token at a time.
- Texts are sampled from random logits under the mask. Each that ends must be valid for the package
  jsonschema. Tokens that close something get higher logits, as random strings would go on for long.
- A mask's time is that of `Matcher.apply`: llguidance's mask, and -inf for the other logits. It is
  taken along the instances, and again in the sampled texts, which meet every corner of a grammar.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jsonschema import validators

from gptx.artifact.manifest import read_manifest
from gptx.bench.machine import lines, machine
from gptx.engine.grammar import Grammar, read_grammar
from gptx.engine.matcher import CompiledGrammar, Matcher
from gptx.engine.structure import GrammarCompiler
from gptx.errors import GptxWarning, UsageError
from gptx.text.tokenizer import Tokenizer, load_tokenizer
from table import table
from tracked import tracked

Case = dict[str, Any]  # a line of the file
ROWS = 8  # rows of a batch whose masks are timed together


@dataclass
class Found:
    """What all cases together gave. Times are in seconds."""

    refused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sampled: Counter[str] = field(default_factory=Counter)
    compile_s: list[float] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)
    random_mask_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--samples", type=int, default=4, help="texts sampled for each schema")
    parser.add_argument("--tokens", type=int, default=256, help="the longest sampled text")
    parser.add_argument("--limit", type=int, help="cases, from the start of the file")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    facts = machine("llguidance", "jsonschema")
    print("\n".join(lines(facts)))
    manifest = read_manifest(given.artifact)
    vocab_size = manifest.model.vocab_size
    tokenizer = load_tokenizer(
        manifest.path, tokenizer_vocab_size=manifest.tokens.vocab_size, vocab_size=vocab_size
    )
    assert tokenizer is not None
    warnings.simplefilter("ignore", GptxWarning)
    began = time.perf_counter()
    compiler = GrammarCompiler(tokenizer, vocab_size=vocab_size, end_tokens=manifest.tokens.eos)
    compiler.compile(Grammar("json_schema", "true"))
    first_s = time.perf_counter() - began
    with given.cases.open(encoding="utf-8") as file:
        cases = [json.loads(line) for line in file][: given.limit]
    found = Found()
    sampler = Sampler(tokenizer, vocab_size, longest=given.tokens)
    for case in tracked(cases, "schemas"):
        compiled = compile_case(compiler, case, found)
        if compiled is None:
            continue
        judge(compiled, tokenizer, vocab_size, case, found)
        for _ in range(given.samples):
            sample(compiled, sampler, case, found)
    report = {**facts, "cases": len(cases), "vocab_size": vocab_size, "first_s": first_s}
    report |= summary(found) | {"batch_s": batch_s(compiler, tokenizer, vocab_size)}
    print_report(report)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def compile_case(compiler: GrammarCompiler, case: Case, found: Found) -> CompiledGrammar | None:
    try:
        grammar = read_grammar(json_schema=case["schema"])
        assert grammar is not None
        began = time.perf_counter()
        compiled = compiler.compile(grammar)
        found.compile_s.append(time.perf_counter() - began)
    except UsageError as error:
        found.refused[str(error).removeprefix("JSON schema: ").partition(" while ")[0][:100]] += 1
        return None
    found.notes.update(note.partition(" in #")[0] for note in compiled.notes)
    return compiled


def judge(
    compiled: CompiledGrammar, tokenizer: Tokenizer, vocab_size: int, case: Case, found: Found
) -> None:
    """Whether the grammar accepts the case's instances, and as what they are known."""
    for test in case["tests"]:
        text = json.dumps(test["data"], ensure_ascii=False)
        matcher, accepted = compiled.matcher(), True
        for token in tokenizer.encode(text, add_special_tokens=False):
            logits = np.zeros(vocab_size, np.float32)
            found.mask_s.append(timed_mask(matcher, logits))
            accepted = matcher.accept(token)
            found.judged["tokens"] += 1
            found.judged["tokens accepted that the mask forbids"] += int(
                accepted and logits[token] < 0
            )
            if not accepted:
                break
        accepted = accepted and matcher.may_end
        known = "valid" if test["valid"] else "invalid"
        found.judged[f"{known}, {'accepted' if accepted else 'rejected'}"] += 1
        if accepted != test["valid"]:
            found.wrong.append(f"{known}: {case['name']}: {test['description']}: {text}")


def timed_mask(matcher: Matcher, logits: np.ndarray) -> float:
    began = time.perf_counter()
    matcher.apply(logits)
    return time.perf_counter() - began


class Sampler:
    """Random logits (V,), higher for tokens that close a string, list or object."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, longest: int) -> None:
        self.longest, self._generator = longest, np.random.default_rng(0)
        self._bytes = tokenizer.token_bytes()
        self._raised = np.zeros(vocab_size, np.float32)
        for token, text in enumerate(self._bytes):
            if any(sign in text for sign in b'"}],'):
                self._raised[token] = 8

    def logits(self) -> np.ndarray:
        noise = self._generator.gumbel(size=len(self._raised))
        return noise.astype(np.float32) + self._raised

    def text(self, tokens: list[int]) -> str:
        return b"".join(self._bytes[token] for token in tokens).decode()


def sample(compiled: CompiledGrammar, sampler: Sampler, case: Case, found: Found) -> None:
    """Sample a text under the mask, and judge it by the package jsonschema."""
    matcher, tokens = compiled.matcher(), []
    while not matcher.is_finished and len(tokens) < sampler.longest:
        logits = sampler.logits()
        found.random_mask_s.append(timed_mask(matcher, logits))
        tokens.append(int(logits.argmax()))
        if not matcher.accept(tokens[-1]):
            raise AssertionError(f"{case['name']}: the mask allows what the grammar forbids")
    if not matcher.is_finished:
        found.sampled["cut at the limit"] += 1
        return
    text = sampler.text([token for token in tokens if token not in matcher.end_tokens])
    schema = case["schema"]
    kind = validators.validator_for(schema, jsonschema.Draft202012Validator)
    valid = kind(schema).is_valid(json.loads(text))
    found.sampled["valid" if valid else "invalid"] += 1
    if not valid:
        found.wrong.append(f"sampled: {case['name']}: {text}")


def batch_s(compiler: GrammarCompiler, tokenizer: Tokenizer, vocab_size: int) -> float:
    """The median time of the masks of ROWS rows, each in a string."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    grammar = read_grammar(json_schema=schema)
    assert grammar is not None
    matchers = [compiler.compile(grammar).matcher() for _ in range(ROWS)]
    for matcher in matchers:
        assert all(map(matcher.accept, tokenizer.encode('{"name": "The')))
    times = []
    for _ in range(100):
        logits = np.zeros((ROWS, vocab_size), np.float32)
        began = time.perf_counter()
        for row, matcher in zip(logits, matchers):
            matcher.apply(row)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def summary(found: Found) -> dict[str, Any]:
    """The figures of a report. Times are in seconds."""
    return {
        "compiled": len(found.compile_s),
        "refused": dict(found.refused.most_common()),
        "notes": dict(found.notes.most_common()),
        "judged": dict(sorted(found.judged.items())),
        "sampled": dict(sorted(found.sampled.items())),
        "compile_s": spread(found.compile_s),
        "mask_s": spread(found.mask_s),
        "random_mask_s": spread(found.random_mask_s),
        "wrong": found.wrong,
    }


def spread(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    low, high = np.percentile(times, [50, 99])
    return {"median": float(low), "p99": float(high), "highest": max(times), "count": len(times)}


def print_report(report: dict[str, Any]) -> None:
    for line in report["wrong"]:
        print(line[:300])
    for kind in ("refused", "notes"):
        for words, count in report[kind].items():
            print(f"{kind}: {count} times: {words}")
    rows = [
        ("schemas compiled", f"{report['compiled']} of {report['cases']}"),
        *((f"instances: {name}", f"{count}") for name, count in report["judged"].items()),
        *((f"sampled texts {name}", f"{count}") for name, count in report["sampled"].items()),
        ("the first grammar, ms", f"{1e3 * report['first_s']:.0f}"),
    ]
    named = {"compile_s": "compiling", "mask_s": "a mask", "random_mask_s": "a mask in random text"}
    for name, what in named.items():
        for part in ("median", "p99", "highest"):
            rows.append((f"{what}, ms, {part}", f"{1e3 * report[name][part]:.3f}"))
    rows.append((f"masks of {ROWS} rows in strings, ms", f"{1e3 * report['batch_s']:.3f}"))
    print(table(["", ""], rows))


if __name__ == "__main__":
    main()

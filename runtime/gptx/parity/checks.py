"""The checks of gptx verify that are not figures: seal, weights, tokenizer, chat template.

Each function returns Checks. The graphs are read, not run. The tokenizer and the chat template are
run as in generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptx.artifact.folders import MANIFEST
from gptx.artifact.json_files import read_side_file
from gptx.artifact.manifest import MOST_PROBLEMS, Manifest
from gptx.engine.loaded_model import LoadedModel
from gptx.errors import first_of
from gptx.parity.reference import Reference
from gptx.parity.report import Check
from gptx.parity.seal import Seal, changes
from gptx.parity.text_record import compare_record
from gptx.parity.weight_checks import check_tables, check_weights, graphs_of, rotary_problems

SHOWN = 5  # problems of one check that are printed


def check_seal(seal: Seal, manifest: Manifest) -> Check:
    """Are the files and gptx.json as they were when the artifact was made?"""
    found = changes(seal, manifest.raw)
    bad = f"not as when the artifact was made: {first_of(found, MOST_PROBLEMS, '; ')}"
    good = "files and gptx.json are as when the artifact was made"
    return Check("unchanged", bad if found else good, not found)


def check_graphs(
    manifest: Manifest, progress: Callable[[int], object]
) -> tuple[list[Check], list[str]]:
    """Are all weights finite numbers, and do the position tables cover n_ctx?

    `progress` is called with the number of bytes that were read. Returns the checks, and notes on
    position tables that are longer than n_ctx.
    """
    graphs = graphs_of(manifest)
    count, bad_weights = check_weights(manifest, graphs, progress)
    other_lengths, bad_tables = check_tables(manifest, graphs)
    bad_tables += rotary_problems(manifest, graphs)
    n_ctx = manifest.model.n_ctx
    checks = [
        _check("weights", f"{count} stored tensors hold no NaN and no infinity", bad_weights),
        _check("context", f"no table of positions ends before n_ctx, {n_ctx:,} tokens", bad_tables),
    ]
    notes = []
    if other_lengths and not bad_tables:
        notes = [
            f"n_ctx is {n_ctx} in {MANIFEST}, and the graph reaches further: {other_lengths[0]}"
        ]
    return checks, notes


def check_text(model: LoadedModel, reference: Reference) -> list[Check]:
    """Do tokenizer, special tokens and chat template give the results that the reference holds?

    See text_record.compare_record. A special token for which gptx.json and the Hugging Face files
    differ fails a check, too.
    """
    tokens = model.manifest.tokens
    checks = compare_record(
        reference.words, model.tokenizer, model.template, tokens, reference.tokens.tolist()
    )
    if contradictions := _contradicting_tokens(model):
        checks.append(Check("end of text", "; ".join(contradictions), False))
    return checks


def _contradicting_tokens(model: LoadedModel) -> list[str]:
    """Special tokens for which gptx.json and the Hugging Face files beside it differ."""
    tokens = model.manifest.tokens
    generation = read_side_file(model.path / "generation_config.json")
    config = read_side_file(model.path / "config.json")
    wrong = []
    for name, ours in (("bos", tokens.bos), ("eos", list(tokens.eos)), ("pad", tokens.pad)):
        key = f"{name}_token_id"
        in_generation = generation.get(key) is not None
        theirs: Any = generation[key] if in_generation else config.get(key)
        if isinstance(theirs, int) and name == "eos":
            theirs = [theirs]
        # If only config.json names a token, the exporter may have left it out on purpose.
        counts = in_generation or ours not in (None, [])
        if counts and theirs is not None and theirs != ours:
            wrong.append(
                f"{name} is {ours} in {MANIFEST}, and {theirs!a:.60} in the files beside it"
            )
    return wrong


def _check(name: str, good: str, problems: list[str]) -> Check:
    return Check(name, "; ".join(problems[:SHOWN]) or good, not problems)

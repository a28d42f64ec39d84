"""Figures of structured output, made from the JSON file that benchmarks/structure.py wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generator.markdown import escaped, table

FILE = Path(__file__).parents[1] / "benchmarks" / "structure" / "smollm2.json"


def page() -> str:
    run = json.loads(FILE.read_text("utf-8"))
    versions = ", ".join(f"{name} {found}" for name, found in run["versions"].items())
    judged, sampled = run["judged"], run["sampled"]
    valid = judged.get("valid, accepted", 0), judged.get("valid, rejected", 0)
    invalid = judged.get("invalid, rejected", 0), judged.get("invalid, accepted", 0)
    finished = sampled.get("valid", 0), sampled.get("invalid", 0)
    rows = [
        ("schemas that compile", f"{run['compiled']:,} of {run['cases']:,}"),
        ("valid instances accepted", f"{valid[0]:,} of {sum(valid):,}"),
        ("invalid instances rejected", f"{invalid[0]:,} of {sum(invalid):,}"),
        ("finished texts of random logits that are valid", f"{finished[0]:,} of {sum(finished):,}"),
        ("compiling, ms: median, 99% within", _spread(run["compile_s"])),
        ("a mask along the instances, ms: median, 99% within", _spread(run["mask_s"])),
        ("a mask in the random texts, ms: median, 99% within", _spread(run["random_mask_s"])),
        ("masks of 8 rows in strings, ms", f"{1e3 * run['batch_s']:.2f}"),
        ("the first grammar of a model, ms", f"{1e3 * run['first_s']:.0f}"),
    ]
    load = f"load average {run['load_average']} before the run"
    machine = f"{escaped(run['cpu'])}, {run['cores']} cores, {load}"
    return "\n\n".join(
        [
            f"{run['vocab_size']:,} tokens; {machine}; {run['date'][:10]}; {escaped(versions)}:",
            f"```sh\n{run['command']}\n```",
            table(["", ""], rows),
            "Why schemas are refused:",
            table(["schemas", "reason"], _reasons(run["refused"])),
        ]
    )


def _spread(times: dict[str, Any]) -> str:
    return f"{1e3 * times['median']:.2f}, {1e3 * times['p99']:.2f}"


def _reasons(refused: dict[str, int]) -> list[tuple[str, str]]:
    """The most frequent reasons, and the number of all others."""
    found = sorted(refused.items(), key=lambda reason: -reason[1])
    rows = [(f"{count:,}", escaped(words)) for words, count in found[:8]]
    others = sum(count for _, count in found[8:])
    return [*rows, *([(f"{others:,}", "others")] if others else [])]

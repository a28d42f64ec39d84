"""Guessed tokens: how many a step gives, what they save, and that the text is the same.

    python benchmarks/speculation.py smollm2-int8 --prompts ../shared/data/spec-bench/prompts.jsonl

Each prompt is answered with speculation and without, by turns, greedy and sampled. The last kind
asks for a quoted text with one word changed. The last line is JSON; the exit status is 1 if a text
differs.

--draft: the artifact of a draft model, which guesses too. --prompts: JSONL with the fields category
and turns (a list of messages, the first is asked), or category and prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import gptx
from gptx.bench.machine import lines, machine
from table import table
from tracked import tracked

QUOTED = (
    "The committee met on Tuesday in the town hall. It heard three reports on the state of the"
    " bridge, agreed to close it for two weeks in spring, and asked the council for a sum of"
    " forty thousand for new railings. The mayor thanked the engineers for their patience."
)
REPEAT = f'Write this text again, with "mayor" changed to "queen":\n\n{QUOTED}'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--draft", type=Path, help="a draft model")
    parser.add_argument("--of-each", type=int, default=6, help="prompts of each category")
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    found = machine("onnxruntime")
    print("\n".join(lines(found)))
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in given.prompts.read_text("utf-8").splitlines():
        record = json.loads(line)
        text = record["turns"][0] if "turns" in record else record["prompt"]
        kinds[record["category"]].append(text)
    asked = [(kind, text) for kind, texts in kinds.items() for text in texts[: given.of_each]]
    asked.append(("repeat a quoted text", REPEAT))
    models = {
        False: gptx.load(given.artifact, speculate=False),
        True: gptx.load(given.artifact, draft=given.draft),
    }
    rows, differing = defaultdict(list), 0
    for kind, text in tracked(asked, "Prompts"):
        ids = models[True].chat_ids([{"role": "user", "content": text}])
        if len(ids) + given.tokens > models[True].n_ctx:
            continue
        for options in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}):
            one = {on: answer(models[on], ids, given.tokens, options) for on in (False, True)}
            differing += one[True]["ids"] != one[False]["ids"]
            rows[kind, "greedy" if not options["temperature"] else "sampled"].append(one)
    results = [summary(kind, how, found_rows) for (kind, how), found_rows in rows.items()]
    header = ["prompts", "", "tokens a step", "guesses right", "faster", "slowest case"]
    print(table(header, [[one[name] for name in one] for one in results]))
    print(f"{differing} of {2 * len(asked)} texts differ")
    print(json.dumps({**found, "results": results, "differing": differing}))
    sys.exit(1 if differing else 0)


def answer(model: gptx.Model, ids: list[int], n: int, options: dict[str, Any]) -> dict[str, Any]:
    """Generate behind a prompt that was read before."""
    model.generate(ids, max_new_tokens=1, **options)
    before, began = model.stats(), time.perf_counter()
    found = model.generate(ids, max_new_tokens=n, **options)
    seconds, after = time.perf_counter() - began, model.stats()
    return {
        "ids": found.token_ids,
        "seconds": seconds,
        "steps": after.steps - before.steps,
        "drafted": after.drafted - before.drafted,
        "accepted": after.accepted - before.accepted,
    }


def summary(kind: str, how: str, rows: list[dict[bool, dict[str, Any]]]) -> dict[str, str]:
    tokens, steps, drafted, accepted = (
        sum(len(one[True][key]) if key == "ids" else one[True][key] for one in rows)
        for key in ("ids", "steps", "drafted", "accepted")
    )
    gains = [one[False]["seconds"] / one[True]["seconds"] for one in rows]
    return {
        "prompts": kind,
        "how": how,
        "tokens a step": f"{tokens / steps:.2f}",
        "right": f"{accepted} of {drafted}",
        "faster": f"{statistics.median(gains):.2f}",
        "slowest": f"{min(gains):.2f}",
    }


if __name__ == "__main__":
    main()

"""Measure artifacts on a task, in the runtime: accuracy and macro-F1 of labels, ROUGE of summaries.

    python benchmarks/tasks.py classify test.jsonl smollm2-int8 polarity-int8 \\
        --labels negative positive
    python benchmarks/tasks.py classify test.jsonl smollm2-int8 --labels negative positive \\
        --shots 4 --train train.jsonl
    python benchmarks/tasks.py summarize dev.jsonl smollm2-int8 scitldr-int8 --limit 100

An artifact that was fine-tuned for the task uses its own prompt; the others use --template, or the
default.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gptx
from gptx.bench.machine import machine
from gptx_models.data.examples import Example, read_examples
from gptx_models.evaluation.metrics import accuracy, macro_f1, rouge
from table import table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("classify", "summarize"))
    parser.add_argument("test", type=Path)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--labels", nargs="+", help="for artifacts without labels of their own")
    parser.add_argument("--template", help="for artifacts that were not fine-tuned")
    parser.add_argument("--shots", type=int, default=0, help="examples in the prompt, from --train")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--limit", type=int, default=10**9, help="texts, from all over the file")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    found = read_examples([options.test], options.task).found
    step = max(1, len(found) // options.limit)
    examples = found[::step][: options.limit]
    shots = []
    if options.shots:
        shots = [
            (e.text, e.answers[0])
            for e in _balanced(read_examples([options.train], options.task).found, options.shots)
        ]
    rows = [measure(artifact, examples, shots, options) for artifact in options.artifacts]
    print(table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]))
    print(json.dumps({"machine": machine(), "texts": len(examples), "rows": rows}))


def measure(
    artifact: str, examples: list[Example], shots: list[tuple[str, str]], options: Any
) -> dict[str, Any]:
    model = gptx.load(artifact, threads=options.threads)
    taught = model.task is not None
    template = None if taught else options.template
    began = time.perf_counter()
    if options.task == "classify":
        labels = None if taught else options.labels
        results = model.classify(
            [e.text for e in examples],
            labels,
            examples=shots,
            template=template,
            calibrate=options.calibrate,
        )
        said, expected = [r.label for r in results], [e.answers[0] for e in examples]
        figures = {"accuracy": accuracy(said, expected), "macro_f1": macro_f1(said, expected)}
    else:
        said = [
            (model.summarize(e.text, examples=shots, template=template).text or "").strip()
            for e in examples
        ]
        figures = rouge(said, [e.answers for e in examples])
    seconds = time.perf_counter() - began
    figures = {name: round(value, 4) for name, value in figures.items()}
    return {
        "artifact": Path(artifact).name,
        "shots": len(shots),
        **figures,
        "ms a text": round(1000 * seconds / len(examples), 1),
    }


def _balanced(examples: list[Example], count: int) -> list[Example]:
    """Examples with the same number of each answer, in turn."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.answers[0], []).append(example)
    if len(groups) > count:  # all answers differ, as in summaries
        return examples[:count]
    return [group[at] for at in range(count) for group in groups.values()][:count]


if __name__ == "__main__":
    main()

"""Perplexity on a text, and how far each model is from the first one: KL, same top-1, differences of logits.

    python benchmarks/perplexity.py wikitext2-test.txt transformers:smollm2 torch:smollm2 gptx:smollm2-int8

Protocol: the whole text is tokenized once, by the first model's tokenizer and without special tokens, and cut into
windows of 1,024 tokens (or the shortest context); stride = window; the first token of a window is not scored. Every
window goes through all models, one after the other in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gptx.compare import Figures, Tally
from gptx.cpu import cpu_cores
from machine import lines, machine
from subjects import Opened, Subject, opened, subject
from table import table
from tracked import tracked


def main() -> None:
    args = arguments()
    facts = machine("onnxruntime", "torch", "transformers", "tokenizers")
    print(*lines(facts), sep="\n", flush=True)
    text = args.text.read_bytes()
    ids = token_ids(args.models[0], text.decode())[: args.tokens]
    models = [opened(one, threads=args.threads) for one in args.models]
    window = min(args.window, *(model.n_ctx for model in models))
    windows = [ids[i : i + window] for i in range(0, len(ids), window)]
    windows = [piece for piece in windows if len(piece) > 1]
    protocol = {
        "text": args.text.name,
        "sha256": hashlib.sha256(text).hexdigest(),
        "window": window,
        "stride": window,
        "tokens": sum(map(len, windows)),
        "scored": sum(len(piece) - 1 for piece in windows),
        "special_tokens": False,
        "threads": args.threads,
    }
    print(
        "{text} (sha256 {sha256:.12}...): {tokens} tokens in windows of {window}, stride {stride}, no special tokens, "
        "the first token of each window not scored: {scored} scored".format(**protocol),
        flush=True,
    )
    tallies, seconds = compare(models, windows)
    found = [entry(model, tally, tallies[0], took) for model, tally, took in zip(models, tallies, seconds)]
    print("", report(found), "", sep="\n")
    print(f"Against {models[0].label}; KL in nats; +- is one standard error, the change's of paired tokens.\n")
    text = json.dumps({"benchmark": "perplexity", **facts, "protocol": protocol, "models": found})
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="TEXT", help="a UTF-8 file: WikiText-2's raw test text, say")
    parser.add_argument("models", nargs="+", type=subject, metavar="MODEL", help="gptx:, torch: or transformers:FOLDER")
    parser.add_argument("--tokens", type=int, help="only the first so many tokens")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def token_ids(model: Subject, text: str) -> list[int]:
    file = model.path / "tokenizer.json"
    if not file.exists():
        sys.exit(f"{model.path} has no tokenizer.json, and the first model's tokenizer is the one that is used")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    return tokenizer.encode(text, add_special_tokens=False).ids


def compare(models: list[Opened], windows: list[list[int]]) -> tuple[list[Tally], list[float]]:
    """A tally for each model, against the first; and the seconds that each model took for its logits."""
    tallies, seconds = [Tally() for _ in models], [0.0] * len(models)
    for window in tracked(windows, "windows"):
        targets = np.array([*window[1:], -1])
        reference: np.ndarray | None = None
        for i, model in enumerate(models):
            began = time.perf_counter()
            logits = model.logits(window)
            seconds[i] += time.perf_counter() - began
            reference = logits if reference is None else reference
            if logits.shape != reference.shape:
                sys.exit(f"{model.label} has {logits.shape[1]} logits, {models[0].label} {reference.shape[1]}")
            tallies[i].add(reference, logits, targets)
    return tallies, seconds


def entry(model: Opened, tally: Tally, first: Tally, seconds: float) -> dict[str, Any]:
    figures: Figures = tally.figures()
    worse = np.concatenate(tally.nll) - np.concatenate(first.nll)
    change = math.exp(worse.mean()) - 1
    return {
        "model": model.label,
        "perplexity": figures.perplexity,
        "perplexity_error": figures.perplexity_error,
        "change": change,
        "change_error": (1 + change) * float(worse.std(ddof=1)) / math.sqrt(len(worse)),
        **{name: getattr(figures, name) for name in ("kl_mean", "kl_p999", "same_top1", "tie_gap", "max_abs")},
        "seconds": round(seconds, 1),
    }


def report(found: list[dict[str, Any]]) -> str:
    heads = ["model", "perplexity", "change %", "mean KL", "99.9% KL", "same top-1 %", "largest logit diff", "s"]
    rows = [
        [
            one["model"],
            f"{one['perplexity']:.4f} +- {one['perplexity_error']:.3f}",
            f"{100 * one['change']:+.3f} +- {100 * one['change_error']:.3f}",
            f"{one['kl_mean']:.3g}",
            f"{one['kl_p999']:.3g}",
            f"{100 * one['same_top1']:.2f}",
            f"{one['max_abs']:.3g}",
            f"{one['seconds']:.0f}",
        ]
        for one in found
    ]
    return table(heads, rows)


if __name__ == "__main__":
    main()

"""The parity certificate: a model in its new form against what it was made from, on the proof text.

The reference is recorded first and then let go, so that a model need not fit twice: its logits wait in a file.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gptx
from gpt_export.certificate.eval_text import Proof
from gptx.artifact.manifest import Tokens
from gptx.model import Model
from gptx.parity import text_record
from gptx.parity.limits import judge
from gptx.parity.metrics import Tally
from gptx.parity.reference import Reference, dump
from gptx.parity.summarize import summarize
from gptx.parity.whole_context import (
    Context,
    context_windows,
    logits_at,
    reaches_offsets,
    record_context,
)
from gptx.progress import stage
from gptx.system.cpu import cpu_features, cpu_name
from gptx.text.chat_template import load_template
from gptx.text.prefix import common_length
from gptx.text.tokenizer import load_tokenizer
from gptx.verify import forced_logits, greedy_tokens, measure
from gptx_models.gpt.model import GPT, Cached

GREEDY = 64  # tokens of greedy text that are compared
SEAL = 2500  # bytes of hashes, see gptx.parity.seal
PER_TOKEN = (
    12  # bytes of the proof text and its token ids, as the artifact carries them for its tokenizer
)


@dataclass(frozen=True)
class Recording:
    """What the reference said on the proof text."""

    name: str  # what it is: "pytorch fp32", "artifact fp32"
    proof: Proof
    logits: list[np.ndarray]  # a window each, (length, vocab_size) float32, mapped from a file
    greedy: list[int]
    context: Context  # what it said up to the context's last position

    def reference(self, budget: int, folder: Path, tokens: dict[str, Any]) -> Reference:
        """What the artifact in `folder`, whose other files are written, is to carry of it: at most `budget` bytes. `tokens`
        are those of its manifest."""
        prompt = self.proof.greedy_prompt
        beside = _words(folder, tokens, self.proof, self.proof.windows[0][:16])
        taken = (
            sum(array.nbytes for array in vars(self.context).values()) + len(dump(beside)) + SEAL
        )
        made = summarize(
            self.proof.windows,
            lambda i: self.logits[i],
            (prompt, self.greedy),
            budget=budget - taken,
            per_token=PER_TOKEN,
        )
        found = _words(folder, tokens, self.proof, made.tokens.tolist())
        return replace(made, context=self.context, words=found)


def complete(
    carried: Reference, recording: Recording, folder: Path, tokens: dict[str, Any]
) -> Reference:
    """`carried`, with what an older gptx did not write into it: the context by `recording`, the words of `folder`."""
    return replace(
        carried,
        context=carried.context or recording.context,
        words=carried.words or _words(folder, tokens, recording.proof, carried.tokens.tolist()),
    )


def _words(folder: Path, tokens: dict[str, Any], text: Proof, proof: list[int]) -> dict[str, Any]:
    facts = Tokens(tokens["vocab_size"], tokens["bos"], tuple(tokens["eos"]), tokens["pad"])
    tokenizer = load_tokenizer(
        folder, tokenizer_vocab_size=facts.vocab_size, vocab_size=text.vocab_size
    )
    template = load_template(folder, tokenizer.special) if tokenizer else None
    return text_record.record_text(tokenizer, template, facts, text=text.text, proof=proof)


def record(
    name: str,
    text: Proof,
    scratch: Path,
    logits: Callable[[list[int], int], np.ndarray | None],
    greedy: Callable[[list[int]], list[int]],
    *,
    context: list[tuple[int, int]],
) -> Recording:
    """Run a reference, teacher-forced and greedily. logits(window, position of its first token) -> (length, vocab_size),
    kept in the file `scratch`; greedy(prompt) -> the tokens that follow. context: windows as of context_windows."""
    total = sum(map(len, text.windows))
    stored: np.memmap | None = None
    windows, at = [], 0
    with stage("Reference logits", total=total) as advance:
        for window in text.windows:
            values = logits(window, 0)
            assert values is not None
            if stored is None:
                _reserve(scratch, 4 * total * values.shape[1])
                stored = np.memmap(scratch, np.float32, "r+", shape=(total, values.shape[1]))
            stored[at : at + len(window)] = values
            windows.append(stored[at : at + len(window)])
            at += len(window)
            advance(len(window))
    with stage("Reference logits of the whole context"):
        reached = record_context(
            [token for window in text.windows for token in window], context, logits
        )
    return Recording(name, text, windows, greedy(text.greedy_prompt), reached)


def _reserve(file: Path, size: int) -> None:
    """Make `file` so large, with its place on the disk: writing to a mapped file that finds none kills the process."""
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)


def record_pytorch(gpt: GPT, text: Proof, scratch: Path, form: str) -> Recording:
    """The reference is the module, in fp32. form: the artifact's cache form."""

    def logits(window: list[int], position: int) -> np.ndarray:
        positions = torch.arange(position, position + len(window))[None]
        with torch.no_grad():
            return gpt(torch.tensor([window]), positions)[0].numpy()

    return record(
        "pytorch fp32",
        text,
        scratch,
        logits,
        lambda prompt: pytorch_greedy(gpt, prompt, GREEDY),
        context=context_windows(gpt.config.n_ctx, offsets=form != "scatter"),
    )


def record_artifact(model: Model, text: Proof, scratch: Path) -> Recording:
    """The reference is an artifact, loaded in the runtime."""
    n = 0 if model.manifest.model.n_class else min(GREEDY, model.n_ctx - len(text.greedy_prompt))
    return record(
        f"artifact {model.manifest.precision}",
        text,
        scratch,
        lambda window, position: logits_at(model, window, position),
        lambda prompt: greedy_tokens(model, prompt, n),
        context=context_windows(model.n_ctx, offsets=reaches_offsets(model)),
    )


def pytorch_greedy(gpt: GPT, prompt: list[int], n: int) -> list[int]:
    """n tokens of argmax by the module, cached; fewer where the context ends, none of a classification head."""
    n = 0 if gpt.config.n_class else min(n, gpt.config.n_ctx - len(prompt))
    tokens, past, new = [], None, torch.tensor([prompt])
    with torch.no_grad():
        while len(tokens) < n:
            start = 0 if past is None else past[0][0].shape[2]
            positions = torch.arange(start, start + new.shape[1])[None]
            attend = Cached(gpt, positions, past=past)
            hidden = gpt.hidden(new, positions, attend)
            past = attend.present
            tokens.append(int(gpt.head(hidden[:, -1]).argmax()))
            new = torch.tensor([tokens[-1:]])
    return tokens


def certify(
    recording: Recording, model: Model, limits: dict[str, float], reference: Reference
) -> dict[str, Any]:
    """The certificate, as gptx.json holds it; `passed` says whether it is inside the limits. `reference`: what the artifact
    carries, by which gptx verify will measure it again."""
    proof, tally = recording.proof, Tally()
    with stage("Comparing", total=sum(map(len, proof.windows))) as advance:
        for window, expected in zip(proof.windows, recording.logits):
            following = [-1] * len(window) if model.manifest.model.n_class else [*window[1:], -1]
            tally.add(expected, forced_logits(model, window), np.array(following))
            advance(len(window))
    figures = tally.figures()
    with stage("Measuring as gptx verify will"):
        verified = measure(model, reference)
    consistency = verified.consistency
    got = greedy_tokens(model, proof.greedy_prompt, len(recording.greedy))
    identical = common_length(recording.greedy, got)
    rows = judge(figures, consistency, limits, verified.context)
    return {
        "against": recording.name,
        "text": proof.description,
        "figures": figures.to_dict(),
        "consistency": consistency,
        "greedy": {
            "prompt_tokens": len(proof.greedy_prompt),
            "compared": len(recording.greedy),
            "identical": identical,
        },
        "verified": verified.to_dict(),  # the figures of gptx verify, whose positions are those that the artifact carries
        "limits": limits,
        "passed": all(row.ok for row in rows),
        "outside": [
            f"{row.name} is {row.value:.3g}, the limit {row.limit:.3g}"
            for row in rows
            if not row.ok
        ],
        "accepted": False,
        # which figures a graph of its own for single rows has a part in: those of the others stand for the main one
        **({"decode": ["cached", "batch", "greedy"]} if model.decode else {}),
        "environment": environment(model.provider),
    }


def environment(provider: str) -> dict[str, Any]:
    """Where figures were measured."""
    import onnxruntime

    return {
        "gptx": gptx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "provider": provider,
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
    }

"""The parity certificate: how far an artifact is from its reference on the evaluation text.

The reference (PyTorch, or an fp32 artifact) runs first. Its logits go to a scratch file and the
model is freed, so that the two models are never in memory together.
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
from gpt_export.certificate.eval_text import EvalText
from gptx.artifact.manifest import Tokens
from gptx.model import Model
from gptx.parity import text_record
from gptx.parity.exactness import inexact
from gptx.parity.limits import judge
from gptx.parity.metrics import Figures, Tally
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
from gptx_models.evaluation.torch_generate import greedy
from gptx_models.gpt.model import GPT

GREEDY = 64  # tokens of greedy text that are compared
SEAL_BYTES = 2500  # reserved in the reference file for the hashes of gptx.parity.seal
# Bytes per token of the evaluation text in the reference file: the token id, and the text itself,
# which checks the tokenizer on the target.
PER_TOKEN = 12


@dataclass(frozen=True)
class Recording:
    """What the reference computed on the evaluation text."""

    name: str  # of the reference: "pytorch fp32", "artifact fp32"
    text: EvalText
    logits: list[np.ndarray]  # per window: (length, vocab_size) float32, mapped from a file
    greedy: list[int]  # the tokens that follow text.greedy_prompt
    context: Context  # logits at positions up to the end of the context

    def reference(self, budget: int, folder: Path, tokens: dict[str, Any]) -> Reference:
        """Summarize the recording for gptx_reference.safetensors, in at most `budget` bytes.

        folder: the artifact, complete but for its reference. tokens: `tokens` of its gptx.json.
        """
        start = self.text.windows[0][:16]
        words = _record_words(folder, tokens, self.text, start)
        context_bytes = sum(array.nbytes for array in vars(self.context).values())
        summary = summarize(
            self.text.windows,
            lambda i: self.logits[i],
            (self.text.greedy_prompt, self.greedy),
            budget=budget - context_bytes - len(dump(words)) - SEAL_BYTES,
            per_token=PER_TOKEN,
        )
        words = _record_words(folder, tokens, self.text, summary.tokens.tolist())
        return replace(summary, context=self.context, words=words)


def complete(
    carried: Reference, recording: Recording, folder: Path, tokens: dict[str, Any]
) -> Reference:
    """Add the parts that the reference of an artifact from an older gptx lacks.

    carried: that reference. Its whole-context logits are taken from `recording`. Its text record is
    made with the tokenizer and chat template in `folder`.
    """
    text = recording.text
    words = carried.words or _record_words(folder, tokens, text, carried.tokens.tolist())
    return replace(carried, context=carried.context or recording.context, words=words)


def _record_words(
    folder: Path, tokens: dict[str, Any], text: EvalText, start: list[int]
) -> dict[str, Any]:
    """Record what the tokenizer and chat template in `folder` do (see gptx.parity.text_record)."""
    facts = Tokens(tokens["vocab_size"], tokens["bos"], tuple(tokens["eos"]), tokens["pad"])
    tokenizer = load_tokenizer(
        folder, tokenizer_vocab_size=facts.vocab_size, vocab_size=text.vocab_size
    )
    template = load_template(folder, tokenizer.special) if tokenizer else None
    return text_record.record_text(tokenizer, template, facts, text=text.text, proof=start)


def record(
    name: str,
    text: EvalText,
    scratch: Path,
    logits: Callable[[list[int], int], np.ndarray | None],
    greedy: Callable[[list[int]], list[int]],
    *,
    context: list[tuple[int, int]],
) -> Recording:
    """Run a reference on the evaluation text, teacher-forced and greedily.

    logits(window, position of its first token) -> (length, vocab_size) float32; stored in the file
    `scratch`. greedy(prompt) -> the token ids that follow. context: windows from context_windows.
    """
    windows = _store_logits(text, scratch, logits)
    with stage("Reference logits of the whole context"):
        all_tokens = [token for window in text.windows for token in window]
        reached = record_context(all_tokens, context, logits)
    return Recording(name, text, windows, greedy(text.greedy_prompt), reached)


def _store_logits(
    text: EvalText, scratch: Path, logits: Callable[[list[int], int], np.ndarray | None]
) -> list[np.ndarray]:
    """Compute each window's logits into the file `scratch`; returns views of the mapped file."""
    total = sum(map(len, text.windows))
    stored: np.memmap | None = None
    windows, row = [], 0
    with stage("Reference logits", total=total) as advance:
        for window in text.windows:
            values = logits(window, 0)
            assert values is not None
            if stored is None:
                _reserve(scratch, 4 * total * values.shape[1])
                stored = np.memmap(scratch, np.float32, "r+", shape=(total, values.shape[1]))
            stored[row : row + len(window)] = values
            windows.append(stored[row : row + len(window)])
            row += len(window)
            advance(len(window))
    return windows


def _reserve(file: Path, size: int) -> None:
    """Make `file` `size` bytes long and allocate its blocks on the disk.

    Writing to a mapped file whose blocks do not fit on the disk would kill the process.
    """
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)


def record_pytorch(gpt: GPT, text: EvalText, scratch: Path, form: str) -> Recording:
    """Record the PyTorch module in fp32 as the reference. form: the artifact's cache form."""

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


def record_artifact(model: Model, text: EvalText, scratch: Path) -> Recording:
    """Record an artifact, loaded in the runtime, as the reference."""
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
    """Generate `n` tokens by argmax with a KV cache.

    Fewer if the context ends before; none for a model with a classification head.
    """
    n = 0 if gpt.config.n_class else n
    return next(greedy(gpt, [prompt], n_tokens=n))


def certify(
    recording: Recording, model: Model, limits: dict[str, float], reference: Reference
) -> dict[str, Any]:
    """Compare `model` with the recording; returns the certificate as gptx.json stores it.

    `passed` tells if all figures are inside `limits`. reference: the one that the artifact carries.
    The figures measured with it (`verified`) are those that `gptx verify` will measure again.
    """
    figures = _compare_logits(recording, model)
    with stage("Measuring as gptx verify will"):
        verified = measure(model, reference)
    greedy = greedy_tokens(model, recording.text.greedy_prompt, len(recording.greedy))
    rows = judge(figures, verified.consistency, limits, verified.context)
    beyond = [row for row in rows if not row.ok]
    outside = [f"{row.name} is {row.value:.3g}, the limit {row.limit:.3g}" for row in beyond]
    if model.kernels:
        outside += inexact(verified.consistency)
    return {
        "against": recording.name,
        "text": recording.text.description,
        "figures": figures.to_dict(),
        "consistency": verified.consistency,
        "greedy": {
            "prompt_tokens": len(recording.text.greedy_prompt),
            "compared": len(recording.greedy),
            "identical": common_length(recording.greedy, greedy),
        },
        "verified": verified.to_dict(),
        **({"logits_sha256": list(verified.logits_sha256)} if verified.logits_sha256 else {}),
        "limits": limits,
        "passed": not outside,
        "outside": outside,
        "accepted": False,
        # figures in which the decode graph (int8-fast) takes part; all others are the main graph's
        **({"decode": ["cached", "batch", "greedy"]} if model.decode else {}),
        "environment": environment(model.provider, model.kernels),
    }


def _compare_logits(recording: Recording, model: Model) -> Figures:
    """Figures of the model's logits beside the recorded ones, over all windows."""
    text, tally = recording.text, Tally()
    with stage("Comparing", total=sum(map(len, text.windows))) as advance:
        for window, expected in zip(text.windows, recording.logits):
            following = [-1] * len(window) if model.manifest.model.n_class else [*window[1:], -1]
            tally.add(expected, forced_logits(model, window), np.array(following))
            advance(len(window))
    return tally.figures()


def environment(provider: str, kernels: str | None) -> dict[str, Any]:
    """Versions, CPU and kernels that figures were measured with.

    kernels: of native operators; None: ONNX Runtime's operators ran.
    """
    import onnxruntime

    return {
        "gptx": gptx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "provider": provider,
        **({"kernels": kernels} if kernels else {}),
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
    }

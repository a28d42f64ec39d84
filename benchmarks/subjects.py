"""Models as functions from a window of token ids to the logits after each of them.

    gptx:ARTIFACT    torch:CHECKPOINT    transformers:CHECKPOINT

All in this process and in fp32 where the artifact is not something else. What is asked of them, it does not know.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Logits = Callable[[list[int]], np.ndarray]  # n ids -> (n, vocab_size) float32


@dataclass(frozen=True)
class Subject:
    label: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Opened:
    label: str
    logits: Logits
    n_ctx: int


def subject(text: str) -> Subject:
    """KIND:PATH as on a command line."""
    kind, _, path = text.partition(":")
    if kind not in OPENERS or not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected KIND:FOLDER, with a kind of {sorted(OPENERS)}")
    return Subject(f"{kind}:{Path(path).absolute().name}", kind, Path(path))


def opened(subject: Subject, *, threads: int) -> Opened:
    logits, n_ctx = OPENERS[subject.kind](subject.path, threads)
    return Opened(subject.label, logits, n_ctx)


def _gptx(path: Path, threads: int) -> tuple[Logits, int]:
    import gptx
    from gptx.verify import forced_logits

    model = gptx.load(path, threads=threads)
    return lambda window: forced_logits(model, window), model.n_ctx


def _torch(path: Path, threads: int) -> tuple[Logits, int]:
    import torch

    from gptx_models.checkpoint import load_model

    torch.set_num_threads(threads)
    model = load_model(path)

    def logits(window: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([window]))[0].numpy()

    return logits, model.config.n_ctx


def _transformers(path: Path, threads: int) -> tuple[Logits, int]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()

    def logits(window: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([window]), use_cache=False).logits[0].numpy()

    return logits, model.config.max_position_embeddings


OPENERS: dict[str, Callable[[Path, int], tuple[Logits, int]]] = {
    "gptx": _gptx,
    "torch": _torch,
    "transformers": _transformers,
}

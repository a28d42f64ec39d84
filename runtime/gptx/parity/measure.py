"""Run a loaded artifact on the texts of its reference, and compute the figures that compare both.

gptx verify does this on the user's machine; export and quantize do it once on the maker's machine,
so that the certificate states the same figures for the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptx.engine.loaded_model import LoadedModel
from gptx.parity.compare import compare
from gptx.parity.metrics import Figures, mean_kl
from gptx.parity.reference import Reference
from gptx.parity.whole_context import compare_context, logits_at
from gptx.text.prefix import common_length

CONSISTENCY_TOKENS = 48  # tokens of text that self_consistency computes in several ways
# The names of the figures of self_consistency
CONSISTENCY = ("cached", "pieces", "batch", "cached_kl", "pieces_kl", "batch_kl")
BATCH_STEPS = 4  # decode steps after the prompts, in the comparison of a batch with single rows


@dataclass(frozen=True)
class Measured:
    """Figures that need nothing but the artifact and the reference that it carries."""

    figures: Figures  # over the proof text
    consistency: dict[str, float]  # see self_consistency
    context: dict[str, float]  # see compare_context; {} if no position could be compared
    greedy: int | None  # leading greedy tokens equal to the reference's; None: a classifier
    # SHA-256 of the native logits of each window of the proof text; () on ONNX Runtime's operators
    logits_sha256: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, float | int]:
        """All figures by name, as gptx.json stores them; figures that are None are left out."""
        every = {
            **self.figures.to_dict(),
            **self.context,
            **self.consistency,
            "greedy_identical": self.greedy,
        }
        return {name: value for name, value in every.items() if value is not None}


def measure(
    model: LoadedModel, reference: Reference, progress: Callable[[int], object] = lambda n: None
) -> Measured:
    """Run the model on all texts of `reference`, and compare the results with those it holds.

    `progress` is called with the number of tokens that were compared since its last call. These
    numbers add up to `tokens_to_compare(reference)`.
    """

    hashes: list[str] = []

    def logits(window: list[int]) -> np.ndarray:
        values = forced_logits(model, window)
        if model.kernels:
            hashes.append(sha256_of(values))
        progress(len(window))
        return values

    classes = model.manifest.model.n_class > 0
    figures = compare(reference, logits, classes=classes)
    context = {}
    if reference.context is not None:
        context = compare_context(
            reference.context, lambda window, at: logits_at(model, window, at), progress
        )
    consistency = self_consistency(model, reference.tokens[: reference.windows[0, 1]].tolist())
    greedy = None if classes else _same_greedy_tokens(model, reference)
    return Measured(figures, consistency, context, greedy, tuple(hashes))


def sha256_of(logits: np.ndarray) -> str:
    """SHA-256 of logits (length, n_logits), as float32 in little-endian order."""
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()


def tokens_to_compare(reference: Reference) -> int:
    """Total number of tokens that `measure` reports to its `progress`."""
    context = reference.context
    return len(reference.tokens) + (len(context.context_tokens) if context else 0)


def forced_logits(model: LoadedModel, window: list[int]) -> np.ndarray:
    """Logits after every token of one window: (length, vocab_size) float32."""
    with model.session(1, size=len(window)) as session:
        return session.feed([window], all_logits=True)[0]


def greedy_tokens(model: LoadedModel, prompt: list[int], n: int) -> list[int]:
    """`n` new tokens, each the argmax of the logits; an end-of-text token does not stop them."""
    tokens: list[int] = []
    with model.session(1) as session:
        logits = session.feed([prompt])
        while len(tokens) < n:
            tokens.append(int(logits[0].argmax()))
            if len(tokens) < n:
                logits = session.feed([tokens[-1:]])
    return tokens


def _same_greedy_tokens(model: LoadedModel, reference: Reference) -> int:
    expected = reference.greedy_tokens.tolist()
    found = greedy_tokens(model, reference.greedy_prompt.tolist(), len(expected))
    return common_length(expected, found)


def self_consistency(model: LoadedModel, window: list[int]) -> dict[str, float]:
    """Compare ways to compute the same logits, over the first 48 tokens of `window`.

    cached: one token at a time, against the whole text at once.
    pieces: the text in two pieces, against the whole text at once.
    batch: three rows of different lengths in a batch, against each row alone.

    Returns for each the largest absolute difference of a logit, and as NAME_kl the mean KL
    divergence in nats.
    """
    text = window[:CONSISTENCY_TOKENS]
    whole = forced_logits(model, text)
    differences = {
        "cached": (whole, _token_by_token(model, text)),
        "pieces": (whole, _in_two_pieces(model, text)),
        "batch": _alone_and_in_a_batch(model, text),
    }
    largest = {name: float(np.abs(a - b).max(initial=0.0)) for name, (a, b) in differences.items()}
    return {**largest, **{f"{name}_kl": mean_kl(a, b) for name, (a, b) in differences.items()}}


def _token_by_token(model: LoadedModel, text: list[int]) -> np.ndarray:
    with model.session(1) as session:
        return np.stack([session.feed([[token]])[0] for token in text])


def _in_two_pieces(model: LoadedModel, text: list[int]) -> np.ndarray:
    cut = max(1, len(text) // 3)
    pieces = [piece for piece in (text[:cut], text[cut:]) if piece]
    with model.session(1) as session:
        return np.concatenate([session.feed([piece], all_logits=True)[0] for piece in pieces])


def _alone_and_in_a_batch(model: LoadedModel, text: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode three rows of `text`, with prompts of different lengths, alone and in one batch.

    Returns the logits of each row alone, and those of the batch: (rows * (1 + steps), vocab_size)
    both.
    """
    starts = [max(1, len(text) * share // 8) for share in (4, 2, 6)]
    steps = min(BATCH_STEPS, len(text) - max(starts))

    def run(starts: list[int]) -> np.ndarray:
        with model.session(len(starts)) as session:
            logits = [session.feed([text[:start] for start in starts])]
            logits += [
                session.feed([[text[start + step]] for start in starts]) for step in range(steps)
            ]
            return np.stack(logits, axis=1)  # (rows, 1 + steps, vocab_size)

    alone = np.concatenate([run([start]) for start in starts])
    return alone.reshape(-1, alone.shape[-1]), run(starts).reshape(-1, alone.shape[-1])

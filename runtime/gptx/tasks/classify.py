"""Choose one of several labels for a text.

A language model scores each label as the answer to a prompt, which may hold examples. A model with
a classification head computes a value for each label. Evaluation during fine-tuning scores labels
in the same way (gptx_models.evaluation).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gptx.artifact.class_head import Head, ProblemType, strip_padding
from gptx.artifact.task import (
    CLASSIFY_TEMPLATE,
    Example,
    check_examples,
    check_labels,
    check_template,
    check_texts,
)
from gptx.artifact.task import prompt as prompt_of
from gptx.engine.loaded_model import LoadedModel
from gptx.engine.read import LastLogits
from gptx.engine.run import run
from gptx.errors import PromptError, UsageError, shown
from gptx.softmax import exp, log, log_softmax
from gptx.tasks.fit_prompt import fit_prompt
from gptx.tasks.label_scores import label_scores
from gptx.tasks.label_tokens import label_tokens
from gptx.text.tokenizer import Tokenizer
from gptx.text.truncate import Fitted

Normalization = Literal["sum", "mean"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # for calibration; Zhao et al. 2021, section 5


@dataclass(frozen=True)
class Classification:
    """The label of a text, and how well each label fits it.

    Fields:

    - label: the label with the highest score.
    - probabilities, scores: a value for each label, from the highest to the lowest.
    - prompt_tokens: the number of tokens in the prompt.
    - left_out: the number of tokens that were cut from the end of the text, to fit the context.
    - problem_type: the meaning of `probabilities`.

    Problem types, by their names in Hugging Face's config.json:

    - "single_label_classification": one label is right, and the probabilities add up to 1.
    - "multi_label_classification": several labels may be right. Each probability is between 0 and
      1, and they need not add up to 1. Heads of one output, such as reward models, are of this
      type.
    - "regression": `probabilities` are the values that the head computed, in any range.

    The scores of a language model are log P(label | prompt) in nats (with normalization "mean":
    nats per token). With `calibrate`, the logarithm of the label's probability after texts without
    content is subtracted. The scores of a classification head are its logits.
    """

    label: str
    probabilities: dict[str, float]
    scores: dict[str, float]
    prompt_tokens: int
    left_out: int
    problem_type: ProblemType = "single_label_classification"


def classify(
    model: LoadedModel,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    *,
    examples: Sequence[Example],
    template: str | None,
    calibrate: bool,
    normalization: Normalization,
    cancel: threading.Event | None,
) -> list[Classification]:
    """Classify texts; Model.classify documents the arguments."""
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            name = f"text {number} of {len(texts)}" if len(texts) > 1 else "the text"
            raise PromptError(
                f"{name} is {'empty' if isinstance(text, str) else shown(text)}:"
                " give a text to classify"
            )
    found = classify_each(
        model,
        texts,
        labels,
        examples=examples,
        template=template,
        calibrate=calibrate,
        normalization=normalization,
        cancel=cancel,
    )
    return list(found)


def classify_each(
    model: LoadedModel,
    texts: Iterable[str],
    labels: Sequence[str] | None = None,
    *,
    examples: Sequence[Example] = (),
    template: str | None = None,
    calibrate: bool = False,
    normalization: Normalization = "sum",
    cancel: threading.Event | None = None,
) -> Iterator[Classification]:
    """Classify texts one by one: each result is yielded before the next text is asked for.

    No text may be empty. Model.classify documents the arguments.
    """
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so there is no text to classify")
    _check_arguments(labels, examples, template, calibrate, normalization)
    task = model.task if model.task is not None and model.task.kind == "classify" else None
    template = template or (task.template if task else None)
    if model.head is not None:
        if examples or calibrate:
            raise UsageError(
                f"{model.path} classifies by a head, which reads the text alone:"
                " leave examples and calibration out"
            )
        yield from _by_head(model, model.head, model.tokenizer, texts, labels, template, cancel)
        return
    labels = labels if labels is not None else task.labels if task else ()
    _check_answers(model, labels, examples)
    ask = functools.partial(prompt_of, template or CLASSIFY_TEMPLATE, examples=examples)
    # The token that ends an answer in the training data
    end = model.manifest.tokens.eos[:1] if task else ()
    scorer = _LabelScorer(
        model, model.tokenizer, labels, ask, normalization, len(examples), end, cancel
    )
    prior = scorer.prior() if calibrate else np.zeros(len(labels))
    for text in texts:
        scores, fitted = scorer(text)
        # Dividing by the prior probabilities (Zhao et al.) is a difference of logarithms.
        yield _result(Head(tuple(labels)), scores - prior, len(fitted.ids), fitted.left_out)


def _check_arguments(
    labels: Sequence[str] | None,
    examples: Sequence[Example],
    template: str | None,
    calibrate: bool,
    normalization: Normalization,
) -> None:
    if not isinstance(normalization, str) or normalization not in ("sum", "mean"):
        raise UsageError(f"normalization is {shown(normalization)}, expected sum or mean")
    if not isinstance(calibrate, bool):
        raise UsageError(f"calibrate is {shown(calibrate)}, expected True or False")
    if template is not None:
        check_template(template)
    if labels is not None:
        check_texts("labels", labels)
    check_examples(examples)


def _check_answers(model: LoadedModel, labels: Sequence[str], examples: Sequence[Example]) -> None:
    """Raise UsageError unless there are labels, and each example has one of them."""
    if not labels:
        raise UsageError(
            f"{model.path} was not fine-tuned for labels: give at least two to choose from"
        )
    check_labels(labels)
    other = next((answer for _, answer in examples if answer not in labels), None)
    if other is not None:
        raise UsageError(
            f"an example has the label {other!r}, which is none of {', '.join(labels)}"
        )


@dataclass(frozen=True)
class _LabelScorer:
    """Scores the labels for one text after another."""

    model: LoadedModel
    tokenizer: Tokenizer
    labels: Sequence[str]
    ask: Callable[[str], str]
    normalization: Normalization
    n_examples: int
    end: Sequence[int]
    cancel: threading.Event | None

    def __call__(self, text: str) -> tuple[np.ndarray, Fitted]:
        """The score of each label, float64 (n_labels,), and the prompt."""
        ids = self._label_tokens(self.ask(text))
        room = self.model.n_ctx - max(map(len, ids)) + 1  # a label's last token is not fed
        fitted = fit_prompt(text, self.ask, self.tokenizer, room=room, n_examples=self.n_examples)
        if fitted.left_out:  # labels may have other tokens behind the shorter prompt
            ids = self._label_tokens(fitted.prompt)
        rows = label_scores(self.model.engine, fitted.ids, ids, self.cancel)
        mean = self.normalization == "mean"
        return np.array([math.fsum(row) / (len(row) if mean else 1) for row in rows]), fitted

    def prior(self) -> np.ndarray:
        """Log-probabilities of the labels after texts without content, (n_labels,)."""
        probabilities = [exp(log_softmax(self(text)[0])) for text in CONTENT_FREE]
        return log(np.mean(probabilities, axis=0))

    def _label_tokens(self, prompt: str) -> list[tuple[int, ...]]:
        return label_tokens(self.tokenizer, prompt, self.labels, self.end)


def _by_head(
    model: LoadedModel,
    head: Head,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    labels: Sequence[str] | None,
    template: str | None,
    cancel: threading.Event | None,
) -> Iterator[Classification]:
    if labels is not None and sorted(labels) != sorted(head.labels):
        raise UsageError(
            f"{model.path} classifies by a head, whose labels are {', '.join(head.labels)}:"
            " leave other labels out"
        )
    ask = functools.partial(prompt_of, template) if template else str
    for text in texts:
        fitted = fit_prompt(text, ask, tokenizer, room=model.n_ctx, n_examples=0)
        work = LastLogits(strip_padding(fitted.ids, head.pad))
        run(model.engine, [work], cancel)
        yield _result(head, work.logits, len(fitted.ids), fitted.left_out)


def values_of(head: Head, logits: np.ndarray) -> np.ndarray:
    """The scores (n_labels,) that transformers' pipeline computes from logits (n_labels,).

    Single-label: the softmax. Multi-label: the sigmoid of each logit. Regression: the logits
    themselves.
    """
    if head.kind == "regression":
        return logits
    if head.kind == "multi_label_classification":
        return 1 / (1 + exp(-logits))
    return exp(log_softmax(logits))


def _result(head: Head, scores: np.ndarray, prompt_tokens: int, left_out: int) -> Classification:
    """The Classification of scores (n_labels,). Labels with equal scores keep their order."""
    values = values_of(head, scores)
    order = sorted(range(len(values)), key=lambda at: -scores[at])
    return Classification(
        label=head.labels[order[0]],
        probabilities={head.labels[at]: float(values[at]) for at in order},
        scores={head.labels[at]: float(scores[at]) for at in order},
        prompt_tokens=prompt_tokens,
        left_out=left_out,
        problem_type=head.kind,
    )

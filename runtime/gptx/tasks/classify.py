"""Text to one of several labels: by how likely a language model finds each label after a prompt, or by a head.

The prompt may hold no, one or several examples. Training's own figures are made the same way
(gptx_models.evaluation.answers).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gptx.artifact.class_head import Head, ProblemType, strip_padding
from gptx.artifact.task import (
    CLASSIFY_TEMPLATE,
    Example,
    Task,
    check_examples,
    check_labels,
    check_template,
    check_texts,
)
from gptx.artifact.task import prompt as asked_for
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.loaded_model import LoadedModel
from gptx.generation.session import Session
from gptx.softmax import log_softmax
from gptx.tasks.label_scores import label_scores
from gptx.text.tokenizer import Tokenizer
from gptx.text.truncate import Fitted, fit

Normalization = Literal["sum", "mean"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5


@dataclass(frozen=True)
class Classification:
    """What a text was found to be.

    problem_type says what `probabilities` are, in the words of Hugging Face's config.json:

    - single_label_classification: one of the labels is right, and the probabilities add up to 1.
    - multi_label_classification: each label is judged by itself, and each probability is between 0 and 1. Heads of
      one output, such as reward models, are of this kind.
    - regression: they are no probabilities but the values that the head computed.

    scores: what the probabilities are made of: log P(label | prompt) in nats, with `calibrate` less the logarithm of
    what the prompt alone gives; or a head's logits. Both list the labels from the highest value to the lowest.
    """

    label: str  # the first of both
    probabilities: dict[str, float]
    scores: dict[str, float]
    prompt_tokens: int
    left_out: int  # tokens of the text's end that had no room in the context
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
) -> list[Classification]:
    """As Model.classify says."""
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            name = f"text {number} of {len(texts)}" if len(texts) > 1 else "the text"
            raise PromptError(
                f"{name} is {'empty' if isinstance(text, str) else shown(text)}: give a text to classify"
            )
    found = classify_each(
        model,
        texts,
        labels,
        examples=examples,
        template=template,
        calibrate=calibrate,
        normalization=normalization,
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
) -> Iterator[Classification]:
    """Each result as soon as it is there, before the next text is asked for. No text may be empty."""
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so there is no text to classify")
    if not isinstance(normalization, str) or normalization not in ("sum", "mean"):
        raise UsageError(f"normalization is {shown(normalization)}, expected sum or mean")
    if not isinstance(calibrate, bool):
        raise UsageError(f"calibrate is {shown(calibrate)}, expected True or False")
    if template is not None:
        check_template(template)
    if labels is not None:
        check_texts("labels", labels)
    check_examples(examples)
    task = model.task if model.task is not None and model.task.kind == "classify" else None
    if model.head is not None:
        if examples or calibrate:
            raise UsageError(
                f"{model.path} classifies by a head, which reads the text alone: leave examples and calibration out"
            )
        template = template or (task.template if task else None)
        yield from _by_head(model, model.head, model.tokenizer, texts, labels, template)
        return
    labels = labels if labels is not None else task.labels if task else ()
    if not labels:
        raise UsageError(
            f"{model.path} names no labels of its own: give at least two to choose from"
        )
    check_labels(labels)
    other = next((answer for _, answer in examples if answer not in labels), None)
    if other is not None:
        raise UsageError(
            f"an example has the label {other!r}, which is none of {', '.join(labels)}"
        )
    template = template or (task.template if task else None) or CLASSIFY_TEMPLATE
    ask = functools.partial(asked_for, template, examples=examples)
    with model.session() as session:
        rank = _Ranking(
            model, model.tokenizer, session, labels, ask, normalization, len(examples), task
        )
        prior = rank.prior() if calibrate else np.zeros(len(labels))
        for text in texts:
            scores, fitted = rank(text)
            # Zhao et al. divide by what texts that say nothing give: a difference of logarithms
            yield _result(Head(tuple(labels)), scores - prior, len(fitted.ids), fitted.left_out)


class _Ranking:
    """One call's labels, prompt and session: from text to text, what prompts have in common is read once."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        session: Session,
        labels: Sequence[str],
        ask: Callable[[str], str],
        normalization: Normalization,
        n_examples: int,
        task: Task | None,
    ) -> None:
        self._tokenizer, self._session, self._labels, self._ask = tokenizer, session, labels, ask
        self._mean, self._n_examples = normalization == "mean", n_examples
        self._end = (
            model.manifest.tokens.eos[:1] if task else ()
        )  # what it was trained to end an answer with

    def __call__(self, text: str) -> tuple[np.ndarray, Fitted]:
        """Each label's score, and the prompt."""
        ids = label_ids(self._tokenizer, self._ask(text), self._labels, self._end)
        room = self._session.limit - max(map(len, ids)) + 1  # a label's last token is not fed
        fitted = fit_or_say(text, self._ask, self._tokenizer, room, self._n_examples)
        if fitted.left_out:
            ids = label_ids(self._tokenizer, fitted.prompt, self._labels, self._end)
        scores = label_scores(self._session, fitted.ids, ids)
        return np.array(
            [math.fsum(row) / (len(row) if self._mean else 1) for row in scores]
        ), fitted

    def prior(self) -> np.ndarray:
        """log of the probabilities that the labels have after texts that say nothing, (n_labels,)."""
        probabilities = [np.exp(log_softmax(self(text)[0])) for text in CONTENT_FREE]
        return np.log(np.mean(probabilities, axis=0))


def label_ids(
    tokenizer: Tokenizer, prompt: str, labels: Sequence[str], end: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """The tokens by which each label is scored after `prompt`: those of " " + label.

    Where one label begins with another's tokens ("card", "card lost"), the shorter one could never be less likely; then
    what follows a label is scored with it: `end`, or a new line, which ends an example's answer. Raises UsageError for a
    label without tokens and for two that have the same.
    """
    ids = [tuple(tokenizer.continuation(prompt, f" {label}")) for label in labels]
    for at, (label, tokens) in enumerate(zip(labels, ids)):
        if not tokens:
            raise UsageError(
                f"the label {label!r} has no tokens in this model's vocabulary: choose another word"
            )
        if tokens in ids[:at]:
            same = labels[ids.index(tokens)]
            raise UsageError(
                f"the labels {same!r} and {label!r} are the same tokens to this model: choose other words"
            )
    ordered = sorted(ids)
    if any(after[: len(before)] == before for before, after in zip(ordered, ordered[1:])):
        following = [
            end or tokenizer.continuation(f"{prompt} {label}", "\n\n")[:1] for label in labels
        ]
        ids = [(*tokens, *ending) for tokens, ending in zip(ids, following)]
    return ids


def fit_or_say(
    text: str, ask: Callable[[str], str], tokenizer: Tokenizer, room: int, n_examples: int
) -> Fitted:
    """The prompt, with as much of the text as there is room for. Raises PromptError where there is none."""
    fitted = fit(text, ask, tokenizer, room)
    if fitted is not None:
        return fitted
    taken = len(tokenizer.encode(ask("")))
    if n_examples:
        examples = f"{n_examples} examples take" if n_examples > 1 else "the example takes"
        raise PromptError(
            f"{examples} {taken} tokens with the template, and the model's context leaves room for {max(room, 0)}:"
            " give fewer or shorter ones"
        )
    raise PromptError(
        f"the template alone takes {taken} tokens, and the model's context leaves room for {max(room, 0)}"
    )


def _by_head(
    model: LoadedModel,
    head: Head,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    labels: Sequence[str] | None,
    template: str | None,
) -> Iterator[Classification]:
    if labels is not None and sorted(labels) != sorted(head.labels):
        raise UsageError(
            f"{model.path} classifies by a head, whose labels are {', '.join(head.labels)}: leave other labels out"
        )
    ask = functools.partial(asked_for, template) if template else str
    with model.session() as session:
        for text in texts:
            fitted = fit_or_say(text, ask, tokenizer, session.limit, 0)
            session.rewind([0])
            logits = session.feed([strip_padding(fitted.ids, head.pad)])[0].astype(np.float64)
            yield _result(head, logits, len(fitted.ids), fitted.left_out)


def _result(head: Head, scores: np.ndarray, prompt_tokens: int, left_out: int) -> Classification:
    values = head.values(scores)
    order = sorted(range(len(values)), key=lambda at: -scores[at])  # of equal ones the first given
    return Classification(
        label=head.labels[order[0]],
        probabilities={head.labels[at]: float(values[at]) for at in order},
        scores={head.labels[at]: float(scores[at]) for at in order},
        prompt_tokens=prompt_tokens,
        left_out=left_out,
        problem_type=head.kind,
    )

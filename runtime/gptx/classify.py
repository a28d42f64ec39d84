"""Text to one of several labels: by how likely a language model finds each label after a prompt, or by a head.

The prompt may hold no, one or several examples. Training's own figures are made the same way (gptx_models.judge).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gptx.compare import log_softmax
from gptx.errors import ArtifactError, PromptError, UsageError
from gptx.fitting import Fitted, fit
from gptx.label_scores import label_scores
from gptx.task import CLASSIFY_TEMPLATE, Example, Task, check_examples, check_labels, check_template
from gptx.task import prompt as asked_for
from gptx.tokenizer import Tokenizer, read_json

if TYPE_CHECKING:
    from gptx.model import Model
    from gptx.session import Session

Normalization = Literal["sum", "mean"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5


@dataclass(frozen=True)
class Classification:
    label: str
    probabilities: dict[str, float]  # of each label, the likeliest first; they add up to 1
    scores: dict[str, float]  # what they are made of: nats of log P(label | prompt), or a head's logits
    prompt_tokens: int
    left_out: int  # tokens of the text's end that had no room in the context


def classify(
    model: Model,
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
            raise PromptError(f"{name} is {'empty' if isinstance(text, str) else repr(text)}: give a text to classify")
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so there is no text to classify")
    if normalization not in ("sum", "mean"):
        raise UsageError(f"normalization is {normalization!r}, expected sum or mean")
    if template is not None:
        check_template(template)
    task = model.task if model.task is not None and model.task.kind == "classify" else None
    if model.manifest.model.n_class:
        if examples or calibrate:
            raise UsageError(
                f"{model.path} classifies by a head, which reads the text alone: leave examples and calibration out"
            )
        return _by_head(model, model.tokenizer, texts, labels, template or (task.template if task else None))
    labels = labels if labels is not None else task.labels if task else ()
    if not labels:
        raise UsageError(f"{model.path} names no labels of its own: give at least two to choose from")
    check_labels(labels)
    check_examples(examples)
    other = next((answer for _, answer in examples if answer not in labels), None)
    if other is not None:
        raise UsageError(f"an example has the label {other!r}, which is none of {', '.join(labels)}")
    template = template or (task.template if task else None) or CLASSIFY_TEMPLATE
    ask = functools.partial(asked_for, template, examples=examples)
    with model.session() as session:
        rank = _Ranking(model, model.tokenizer, session, labels, ask, normalization, len(examples), task)
        prior = rank.prior() if calibrate else np.zeros(len(labels))
        return [_result(labels, *rank(text), prior=prior) for text in texts]


class _Ranking:
    """One call's labels, prompt and session: from text to text, what prompts have in common is read once."""

    def __init__(
        self,
        model: Model,
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
        self._end = model.manifest.tokens.eos[:1] if task else ()  # what it was taught to end an answer with

    def __call__(self, text: str) -> tuple[np.ndarray, Fitted]:
        """Each label's score, and the prompt."""
        ids = label_ids(self._tokenizer, self._ask(text), self._labels, self._end)
        room = self._session.limit - max(map(len, ids)) + 1  # a label's last token is not fed
        fitted = fit_or_say(text, self._ask, self._tokenizer, room, self._n_examples)
        if fitted.left_out:
            ids = label_ids(self._tokenizer, fitted.prompt, self._labels, self._end)
        scores = label_scores(self._session, fitted.ids, ids)
        return np.array([math.fsum(row) / (len(row) if self._mean else 1) for row in scores]), fitted

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
            raise UsageError(f"the label {label!r} has no tokens in this model's vocabulary: choose another word")
        if tokens in ids[:at]:
            same = labels[ids.index(tokens)]
            raise UsageError(f"the labels {same!r} and {label!r} are the same tokens to this model: choose other words")
    ordered = sorted(ids)
    if any(after[: len(before)] == before for before, after in zip(ordered, ordered[1:])):
        following = [end or tokenizer.continuation(f"{prompt} {label}", "\n\n")[:1] for label in labels]
        ids = [(*tokens, *ending) for tokens, ending in zip(ids, following)]
    return ids


def fit_or_say(text: str, ask: Callable[[str], str], tokenizer: Tokenizer, room: int, n_examples: int) -> Fitted:
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
    model: Model, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[str] | None, template: str | None
) -> list[Classification]:
    known = head_labels(model)
    if labels is not None and sorted(labels) != sorted(known):
        raise UsageError(
            f"{model.path} classifies by a head, whose labels are {', '.join(known)}: leave other labels out"
        )
    ask = functools.partial(asked_for, template) if template else str
    results = []
    with model.session() as session:
        for text in texts:
            fitted = fit_or_say(text, ask, tokenizer, session.limit, 0)
            session.rewind([0])
            logits = session.feed([fitted.ids])[0].astype(np.float64)
            results.append(_result(known, logits, fitted, prior=np.zeros(len(known))))
    return results


def head_labels(model: Model) -> tuple[str, ...]:
    """The labels of a classification head: gptx_task.json's, else config.json's id2label. Raises ArtifactError."""
    n_class = model.manifest.model.n_class
    if model.task is not None and model.task.labels:
        where, labels = "gptx_task.json", model.task.labels
    else:
        where, named = "config.json", read_json(model.path / "config.json").get("id2label")
        named = named if isinstance(named, dict) else {}
        labels = tuple(str(named.get(str(n), f"LABEL_{n}")) for n in range(max(n_class, len(named))))
    if len(labels) != n_class or len(set(labels)) != n_class:
        raise ArtifactError(
            f"{model.path / where} names {len(set(labels))} labels, and the head has {n_class}: export the artifact again"
        )
    return labels


def _result(labels: Sequence[str], scores: np.ndarray, fitted: Fitted, *, prior: np.ndarray) -> Classification:
    """Probabilities are softmax(score - prior): divided by what content-free texts give, as Zhao et al. do."""
    probabilities = np.exp(log_softmax(scores - prior))
    order = sorted(range(len(labels)), key=lambda at: -probabilities[at])  # of equal ones the first given
    return Classification(
        label=labels[order[0]],
        probabilities={labels[at]: float(probabilities[at]) for at in order},
        scores={labels[at]: float(scores[at]) for at in order},
        prompt_tokens=len(fitted.ids),
        left_out=fitted.left_out,
    )

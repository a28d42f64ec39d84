"""classify, score and summarize, compared with the PyTorch model that the artifact was made from.

Their commands are tested, too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptx
from builders.gptx_command import gptx as command
from builders.tiny_artifact import refresh
from gptx.artifact.task import CLASSIFY_TEMPLATE, SUMMARIZE_TEMPLATE, Task, prompt, task_json
from gptx.errors import PromptError, UsageError
from gptx.kv_cache.feed import Feed
from gptx.kv_cache.rows import Rows
from gptx.tasks.label_scores import label_scores
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.gpt.model import GPT

TEXT = "the cat sat on the mat and the dog"
LABELS = ("cat", "dog on the log")


@pytest.fixture(scope="module")
def model(fp32: Path) -> gptx.Model:
    return gptx.load(fp32)


@pytest.fixture(scope="module")
def gpt(checkpoint: Path) -> GPT:
    return load_model(checkpoint)


def logprobs(gpt: GPT, ids: list[int]) -> list[float]:
    """log P of each token but the first, by PyTorch."""
    with torch.no_grad():
        rows = gpt(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return [float(rows[at, token]) for at, token in enumerate(ids[1:])]


def test_scores_are_the_models(model: gptx.Model, gpt: GPT):
    found, ids = model.score(TEXT), model.encode(TEXT)
    expected = logprobs(gpt, ids)
    assert (
        found.logprobs[0] is None and found.token_ids == ids and "".join(found.pieces or []) == TEXT
    )
    np.testing.assert_allclose(found.logprobs[1:], expected, atol=1e-4)  # type: ignore[arg-type]
    assert found.total == pytest.approx(sum(expected), abs=1e-3)
    assert found.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-3)
    n_bytes = len(TEXT) - len((found.pieces or [""])[0])
    assert found.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / n_bytes, rel=1e-3)


def test_an_overlap_near_the_context_is_told(model: gptx.Model):
    """Such an overlap needs a window for every token."""
    ids = [int(token) for token in np.random.default_rng(0).integers(0, 300, 300)]
    says = (
        "an overlap of 128 tokens reads this text 73 times, in 172 windows of 128 tokens:"
        " a smaller overlap is faster"
    )
    with pytest.warns(gptx.GptxWarning, match=says):
        found = model.score(ids, overlap=128)
    assert len(found.logprobs) == 300


def test_a_long_text_is_scored_in_windows(model: gptx.Model, gpt: GPT):
    ids = [int(token) for token in np.random.default_rng(0).integers(0, 300, 300)]
    found = model.score(ids, overlap=40)
    assert found.overlap == 40 and len(found.logprobs) == 300
    values: Any = found.logprobs
    np.testing.assert_allclose(values[1:129], logprobs(gpt, ids[:129]), atol=1e-4)
    # The second window begins 40 tokens before the first that it scores.
    second = logprobs(gpt, ids[129 - 40 : 129 - 40 + 129])[39:]
    np.testing.assert_allclose(values[129 : 129 + len(second)], second, atol=1e-4)


@pytest.mark.parametrize(
    "examples", [(), [("the mat", "cat")], [("the mat", "cat"), ("a log", "dog on the log")]]
)
def test_a_label_is_as_likely_as_its_tokens(examples: list, model: gptx.Model, gpt: GPT):
    found = model.classify(TEXT, LABELS, examples=examples)
    asked = prompt(CLASSIFY_TEMPLATE, TEXT, examples)
    ids = model.encode(asked)
    for label in LABELS:
        whole = model.encode(f"{asked} {label}")
        assert whole[: len(ids)] == ids
        assert found.scores[label] == pytest.approx(
            sum(logprobs(gpt, whole)[len(ids) - 1 :]), abs=1e-3
        )
    weights = {label: math.exp(score) for label, score in found.scores.items()}
    for label in LABELS:
        assert found.probabilities[label] == pytest.approx(
            weights[label] / sum(weights.values()), rel=1e-4
        )
    assert (
        found.label
        == max(weights, key=lambda label: weights[label])
        == next(iter(found.probabilities))
    )


PARTING = (
    "the cat sat on",
    "the cat sat at",
    "the cat lay on",
    "the cat lay at",
    "a cat sat on",
    "the dog sat on",
)
NESTED = ("the", "the cat", "the cat sat on the mat", "the cat sat on the log", "the cat sat")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("labels", "after"), [(PARTING, ""), (NESTED, "\n\n")])
def test_labels_that_begin_alike_are_each_as_likely_as_alone(
    labels: tuple[str, ...], after: str, turned: bool, model: gptx.Model, gpt: GPT
):
    """If a label begins another, both are scored with the first token of an empty line after it."""
    asked = prompt(CLASSIFY_TEMPLATE, TEXT)
    ids, ending = model.encode(asked), model.encode(after)[:1] if after else []
    found = model.classify(TEXT, labels[::-1] if turned else labels)
    for label in labels:
        whole = model.encode(f"{asked} {label}") + ending
        assert found.scores[label] == pytest.approx(
            sum(logprobs(gpt, whole)[len(ids) - 1 :]), abs=1e-3
        )


def test_a_prompt_is_read_once_for_all_labels(model: gptx.Model, monkeypatch: pytest.MonkeyPatch):
    labels = [[5, 6, 7], [5, 6, 8, 9], [5], [10], [10, 11]]
    read, run = [], Rows.run

    def counted(rows: Rows, feeds: Sequence[Feed]) -> Any:
        read.extend(token for feed in feeds for token in feed.ids)
        return run(rows, feeds)

    model.engine.forget()
    monkeypatch.setattr(Rows, "run", counted)
    label_scores(model.engine, [1, 2, 3, 4], labels)
    again = [] if model.kernels else [4] * 3  # ONNX Runtime reads no token of a prompt alone
    assert sorted(read) == sorted([1, 2, 3, 4, *again, 5, 6, 5, 6, 8, 10])


def test_a_list_is_each_alone(model: gptx.Model):
    texts = [TEXT, "the log", "the dog sat"]
    for alone, together in zip(
        [model.classify(text, LABELS) for text in texts], model.classify(texts, LABELS)
    ):
        assert together.label == alone.label
        assert together.scores == pytest.approx(alone.scores, abs=1e-4)


def test_calibration_divides_by_what_texts_that_say_nothing_give(model: gptx.Model, gpt: GPT):
    """The mean of the probabilities after "N/A", "[MASK]" and "" (Zhao et al. 2021, section 5)."""

    def scores(text: str) -> np.ndarray:
        asked = prompt(CLASSIFY_TEMPLATE, text)
        ids = model.encode(asked)
        return np.array(
            [
                sum(logprobs(gpt, model.encode(f"{asked} {label}"))[len(ids) - 1 :])
                for label in LABELS
            ]
        )

    def softmax(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum()

    prior = np.mean([softmax(scores(text)) for text in ("N/A", "[MASK]", "")], axis=0)
    assert abs(prior[0] - prior[1]) > 0.1  # the prompt does prefer a label
    changed = 0
    for text in (TEXT, "the log", "the dog sat on the log", "a"):
        plain, fair = model.classify(text, LABELS), model.classify(text, LABELS, calibrate=True)
        expected = softmax(scores(text)) / prior
        assert [fair.probabilities[label] for label in LABELS] == pytest.approx(
            expected / expected.sum(), abs=1e-3
        )
        assert [fair.scores[label] for label in LABELS] == pytest.approx(
            scores(text) - np.log(prior), abs=1e-3
        )
        assert (
            fair.label
            == max(fair.scores, key=lambda label: fair.scores[label])
            == next(iter(fair.probabilities))
        )
        changed += fair.label != plain.label
    assert changed


def test_what_it_was_taught_is_the_default(fp32: Path, tmp_path: Path):
    trained = Path(shutil.copytree(fp32, tmp_path / "trained"))
    (trained / "gptx_task.json").write_text(
        json.dumps(task_json(Task("classify", "{text} ?", LABELS)))
    )
    refresh(trained)
    model = gptx.load(trained)
    assert model.task == Task("classify", "{text} ?", LABELS)
    assert set(model.classify(TEXT).probabilities) == set(LABELS)
    assert model.classify(TEXT).prompt_tokens == len(model.encode(f"{TEXT} ?"))


def test_a_summary_is_a_greedy_completion(model: gptx.Model):
    found = model.summarize(TEXT, max_new_tokens=6)
    asked = prompt(SUMMARIZE_TEMPLATE, TEXT)
    assert (
        found.text == model.generate(asked, max_new_tokens=6, temperature=0).text.strip()
        and found.left_out == 0
    )
    long = model.summarize(f"{TEXT} " * 40, max_new_tokens=6)
    assert long.left_out > 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.classify("", LABELS), "empty"),
        (lambda m: m.classify(TEXT, ["cat"]), "at least two labels"),
        (lambda m: m.classify(TEXT, ["cat", "cat"]), "given twice"),
        (lambda m: m.classify(TEXT), "was not fine-tuned for labels"),
        (lambda m: m.classify(TEXT, LABELS, template="Label:"), "expected once"),
        (lambda m: m.classify(TEXT, LABELS, examples=[("a", "bird")]), "none of cat"),
        (lambda m: m.classify(TEXT, LABELS, examples=[(TEXT * 10, "cat")] * 5), "example"),
        (lambda m: m.summarize("  "), "empty"),
        (lambda m: m.score("the"), "longer text"),
        (lambda m: m.score(TEXT, overlap=1000), "overlap is 1000"),
    ],
)
def test_what_cannot_be_done_is_said(call, says: str, model: gptx.Model):
    with pytest.raises((PromptError, UsageError), match=says):
        call(model)


def test_the_verbs(fp32: Path, tmp_path: Path):
    labels = ["--label", "cat", "--label", "dog"]
    model = gptx.load(fp32)
    one = command("classify", "-m", str(fp32), TEXT, *labels)
    assert one.status == 0 and one.text.strip() == model.classify(TEXT, ["cat", "dog"]).label
    (tmp_path / "texts.txt").write_text(f"{TEXT}\nthe log\n")
    (tmp_path / "shots.jsonl").write_text('{"text": "the mat", "label": "cat"}\n')
    shots = ["--examples", str(tmp_path / "shots.jsonl"), "--example", "the log=>dog"]
    two = command(
        "classify",
        "-m",
        str(fp32),
        "--file",
        str(tmp_path / "texts.txt"),
        *labels,
        *shots,
        "--json",
    )
    expected = model.classify(
        [TEXT, "the log"], ["cat", "dog"], examples=[("the log", "dog"), ("the mat", "cat")]
    )
    assert [json.loads(line)["label"] for line in two.text.splitlines()] == [
        result.label for result in expected
    ]
    scored = command("score", "-m", str(fp32), TEXT)
    assert scored.status == 0 and f"sum {model.score(TEXT).total:.3f}" in scored.text
    assert json.loads(command("score", "-m", str(fp32), TEXT, "--json").text)[
        "token_ids"
    ] == model.encode(TEXT)
    summary = command("summarize", "-m", str(fp32), f"{TEXT} " * 40, "-n", "5")
    assert summary.status == 0 and "were cut off" in summary.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["classify", "x", "--label", "a", "--label", "b", "--example", "foo"],
            "expected TEXT=>ANSWER",
        ),
        (["classify", "x", "--file", "y", "--label", "a"], "not both"),
        (["classify", "x"], "was not fine-tuned for labels"),
        (["score", "x", "--file", "y"], "not both"),
    ],
)
def test_a_wrong_command_is_one_sentence(arguments: list[str], says: str):
    outcome = command(*arguments)
    assert outcome.status == 1 and says in outcome.err and outcome.err.count("\n") == 1

"""A classification head: export, int8, verify and runtime, against transformers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.gptx_command import gptx as command
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.task import Task, task_json
from gptx.errors import UsageError

LABELS = ("cat", "dog", "log")
LLAMA = dataclasses.replace(
    CONFIG,
    n_kv_head=2,
    position="rope",
    norm="rmsnorm",
    activation="swiglu",
    n_inner=96,
    attn_bias=False,
    mlp_bias=False,
)


@pytest.fixture(scope="module", params=["gpt2", pytest.param("llama", marks=pytest.mark.wide)])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = CONFIG if request.param == "gpt2" else LLAMA
    folder = write_checkpoint(
        tmp_path_factory.mktemp(request.param) / "checkpoint", dataclasses.replace(shape, n_class=3)
    )
    (folder / "gptx_task.json").write_text(
        json.dumps(task_json(Task("classify", labels=LABELS, head=True)))
    )
    return folder


@pytest.fixture(scope="module")
def artifacts(checkpoint: Path) -> dict[str, Path]:
    made = {to: checkpoint.with_name(to) for to in ("fp32", "int8", "growing")}
    export_checkpoint(checkpoint, made["fp32"])
    export_checkpoint(checkpoint, made["growing"], cache="growing")
    quantize_artifact(made["fp32"], made["int8"], to="int8", accept=True)
    return made


def test_is_what_transformers_computes(checkpoint: Path, artifacts: dict[str, Path]):
    theirs = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    for name in ("fp32", "growing"):
        model = gptx.load(artifacts[name])
        for text in ("the cat sat on the mat", "a dog", "the log and the mat sat on the dog " * 5):
            with torch.no_grad():
                logits = theirs(torch.tensor([model.encode(text)])).logits[0].numpy()
            found = model.classify(text)
            assert found.label == LABELS[int(logits.argmax())]
            np.testing.assert_allclose([found.scores[label] for label in LABELS], logits, atol=1e-4)
            assert sum(found.probabilities.values()) == pytest.approx(1)


def test_int8_is_near(artifacts: dict[str, Path]):
    texts = ["the cat sat on the mat", "a dog", "the log"]
    fp32, int8 = (gptx.load(artifacts[name]).classify(texts) for name in ("fp32", "int8"))
    for exact, rounded in zip(fp32, int8, strict=True):
        for label in LABELS:
            assert rounded.scores[label] == pytest.approx(exact.scores[label], abs=0.5)


def test_its_certificate_has_no_language(artifacts: dict[str, Path]):
    for path in artifacts.values():
        certificate = json.loads((path / "gptx.json").read_text())["certificate"]
        assert (
            certificate["figures"]["perplexity"] is None and certificate["greedy"]["compared"] == 0
        )
        card = (path / "README.md").read_text()
        assert "perplexity" not in card and "text-classification" in card
        assert (
            "| task | classifies by a head, as one of cat, dog, log |" in card
            and "onnxruntime-genai" not in card
        )
        assert not (path / "genai_config.json").exists()
    verified = command("verify", str(artifacts["fp32"]))
    assert verified.status == 0 and "perplexity" not in verified.text and "kl_mean" in verified.text


def test_it_says_what_it_is_for(checkpoint: Path, artifacts: dict[str, Path], tmp_path: Path):
    for folder in (checkpoint, *artifacts.values()):
        shown = command("inspect", folder).text
        assert re.search("task +classifies by a head, as one of cat, dog, log", shown)
        assert "generates" not in shown and "gptx run" not in shown
    shown = command("inspect", artifacts["int8"]).text
    assert shown.endswith(f'next: gptx classify -m {artifacts["int8"]} "Once upon a time"\n')
    imported = command("import", checkpoint, tmp_path / "imported")
    assert "classification head for LABEL_0, LABEL_1, LABEL_2" in imported.err


def test_it_does_not_write(artifacts: dict[str, Path]):
    model = gptx.load(artifacts["fp32"])
    for call in (model.generate, model.score, model.summarize):
        with pytest.raises(UsageError, match="classification model"):
            call("the cat")
    refused = command("run", "-m", str(artifacts["fp32"]), "the cat")
    assert refused.status == 1 and "classification model" in refused.err

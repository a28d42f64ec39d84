"""Classification heads of Hugging Face checkpoints, compared with transformers' pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptx
from builders.gptx_command import gptx as command
from builders.tiny_artifact import refresh
from gpt_export.export import export_checkpoint
from gptx.artifact.class_head import Head, read_head
from gptx.errors import ArtifactError, CheckpointError, UsageError
from gptx.tasks.classify import values_of
from gptx_models.checkpoints.checkpoint import load_config, load_head, load_model
from gptx_models.data.pretraining import train_tokenizer
from gptx_models.importers import import_checkpoint

END = "<|endoftext|>"
TEXTS = ["the cat sat on the log", f"a dog{END}{END}", f"the{END} mat", END]
THREE = {"0": "bad", "1": "middling", "2": "good"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one of three": (
        3,
        {"id2label": THREE, "problem_type": "single_label_classification", "pad_token_id": 0},
    ),
    "no problem type": (3, {"id2label": THREE, "pad_token_id": 0}),
    "several at once": (
        3,
        {"id2label": THREE, "problem_type": "multi_label_classification", "pad_token_id": 0},
    ),
    "three values": (3, {"id2label": THREE, "problem_type": "regression", "pad_token_id": 0}),
    "a reward": (1, {"id2label": {"0": "LABEL_0"}, "pad_token_id": 0}),
    "one of one": (
        1,
        {
            "id2label": {"0": "spam"},
            "problem_type": "single_label_classification",
            "pad_token_id": 0,
        },
    ),
    "a value": (1, {"id2label": {"0": "stars"}, "problem_type": "regression", "pad_token_id": 0}),
    "labels in another order": (
        3,
        {"id2label": {"2": "good", "0": "bad", "1": "fair"}, "pad_token_id": 0},
    ),
    "more than ten labels": (
        12,
        {"id2label": {str(at): f"kind {at}" for at in reversed(range(12))}, "pad_token_id": 0},
    ),
    "only their number": (3, {"num_labels": 3, "pad_token_id": 0}),
    "only label2id": (2, {"label2id": {"no": 0, "yes": 1}, "pad_token_id": 0}),
    "labels that are numbers": (3, {"id2label": {"0": 1, "1": 2, "2": 3}, "pad_token_id": 0}),
    "no pad token": (3, {"id2label": THREE}),
    "another pad token": (3, {"id2label": THREE, "pad_token_id": 7}),
}


def write_classifier(folder: Path, n_labels: int, family: str = "llama") -> Path:
    torch.manual_seed(0)
    if family == "llama":
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        shape["num_attention_heads"] = 4
        config = transformers.LlamaConfig(
            vocab_size=300, max_position_embeddings=64, num_labels=n_labels, **shape
        )
        model: Any = transformers.LlamaForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=4, num_labels=n_labels
        )
        model = transformers.GPT2ForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(folder)
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the log " * 3], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def described(folder: Path, values: dict[str, Any]) -> Path:
    """Write a config.json that describes the head with these fields alone."""
    path = folder / "config.json"
    fields = ("id2label", "label2id", "num_labels", "problem_type", "pad_token_id")
    config = {
        name: value for name, value in json.loads(path.read_text()).items() if name not in fields
    }
    path.write_text(json.dumps({**config, **values}))
    return folder


def theirs(folder: Path, text: str) -> dict[str, float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, top_k=None
    )(text)[0]
    return {str(entry["label"]): entry["score"] for entry in found}  # type: ignore[index]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of labels -> a checkpoint of transformers."""
    folder = tmp_path_factory.mktemp("heads")
    families = {1: "llama", 2: "gpt2", 3: "llama", 12: "gpt2"}
    return {n: write_classifier(folder / str(n), n, family) for n, family in families.items()}


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[int, Path]) -> dict[int, Path]:
    """Number of labels -> the artifact that was exported from the checkpoint."""
    made = {n: checkpoints[n].with_name(f"{n}-onnx") for n in (1, 3)}
    for n, out in made.items():
        export_checkpoint(checkpoints[n], out)
    return made


@pytest.mark.parametrize(
    "name", [name for name, (n_labels, _) in CASES.items() if n_labels in (1, 3)]
)
def test_a_head_says_what_transformers_pipeline_says(
    name: str, checkpoints: dict[int, Path], artifacts: dict[int, Path], tmp_path: Path
) -> None:
    """The artifact's config.json is that of the checkpoint; the graph does not depend on it."""
    n_labels, values = CASES[name]
    checkpoint = described(shutil.copytree(checkpoints[n_labels], tmp_path / "checkpoint"), values)
    artifact = described(shutil.copytree(artifacts[n_labels], tmp_path / "artifact"), values)
    refresh(artifact)
    with gptx.load(artifact) as model:
        found = model.classify(TEXTS)
        for text, result in zip(TEXTS, found):
            expected = theirs(checkpoint, text)
            assert result.probabilities == pytest.approx(expected, abs=1e-4), text
            assert result.label == max(expected, key=expected.__getitem__)
            assert list(result.probabilities) == sorted(
                expected, key=expected.__getitem__, reverse=True
            )
            alone = sum(result.probabilities.values()) == pytest.approx(1)
            assert alone or result.problem_type != "single_label_classification"
        assert model.classify(TEXTS[0]).probabilities == found[0].probabilities


@pytest.mark.parametrize("name", CASES)
def test_an_imported_head_is_described_as_it_was(
    name: str, checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    """The head's pad token is kept, and not replaced by the tokenizer's.

    It decides which token's logits count.
    """
    n_labels, values = CASES[name]
    source = described(shutil.copytree(checkpoints[n_labels], tmp_path / "theirs"), values)
    import_checkpoint(str(source), tmp_path / "ours")
    before, after = (
        transformers.AutoConfig.from_pretrained(tmp_path / name) for name in ("theirs", "ours")
    )
    assert {at: str(label) for at, label in before.id2label.items()} == after.id2label
    assert (before.problem_type, before.pad_token_id) == (after.problem_type, after.pad_token_id)
    assert after.architectures == before.architectures
    import_checkpoint(str(tmp_path / "ours"), tmp_path / "again")
    assert load_head(tmp_path / "again") == load_head(tmp_path / "ours")


def test_token_types_that_the_pipeline_adds_are_told(
    checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    """transformers' GPT-2 adds the embedding of each token type if the tokenizer returns types.

    Tokenizers without a class of their own return them.
    """
    values = {"num_labels": 2, "problem_type": "regression", "pad_token_id": 0}
    source = described(shutil.copytree(checkpoints[2], tmp_path / "theirs"), values)
    gpt, ids = (
        load_model(source),
        transformers.AutoTokenizer.from_pretrained(source)("the cat")["input_ids"],
    )
    with torch.no_grad():
        ours = dict(zip(("LABEL_0", "LABEL_1"), gpt(torch.tensor([ids]))[0, -1].tolist()))
    assert theirs(source, "the cat") != pytest.approx(ours, abs=1e-3)
    told: list[str] = []
    import_checkpoint(str(source), tmp_path / "first", tell=told.append)
    assert "token_type_ids" in "".join(told)
    path = source / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
    assert theirs(source, "the cat") == pytest.approx(ours, abs=1e-5)
    told.clear()
    import_checkpoint(str(source), tmp_path / "second", tell=told.append)
    assert "token_type_ids" not in "".join(told)


def test_import_and_export_make_what_export_makes(
    checkpoints: dict[int, Path], artifacts: dict[int, Path], tmp_path: Path
) -> None:
    values = CASES["several at once"][1]
    source = described(
        shutil.copytree(checkpoints[3], tmp_path / "theirs"), {**values, "pad_token_id": None}
    )
    import_checkpoint(str(source), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "artifact")
    with gptx.load(tmp_path / "artifact") as model:
        for text in TEXTS:
            assert model.classify(text).probabilities == pytest.approx(
                theirs(source, text), abs=1e-4
            )


def test_a_head_of_our_own_kind_keeps_its_description(tmp_path: Path) -> None:
    """A mistral with a window becomes model_type gptx, and its config.json keeps the pad token."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 8,
    }
    labels: dict[str, Any] = {
        "num_labels": 2,
        "problem_type": "multi_label_classification",
        "pad_token_id": 7,
    }
    config = transformers.MistralConfig(vocab_size=300, **shape, **heads, **labels)
    transformers.MistralForSequenceClassification(config).save_pretrained(tmp_path / "theirs")
    import_checkpoint(str(tmp_path / "theirs"), tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "gptx"
    assert load_head(tmp_path / "ours") == Head(
        ("LABEL_0", "LABEL_1"), "multi_label_classification", 7
    )
    assert load_config(tmp_path / "ours").n_class == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"id2label": {"1": "no", "2": "yes"}}, "id2label names the ids 1, 2, expected 0 to 1"),
        ({"id2label": {"zero": "no"}}, "id2label names the ids zero, expected 0 to 0"),
        ({"id2label": {"0": "no", "00": "yes"}}, "id2label names the ids 0, 00"),
        ({"id2label": ["no", "yes"]}, "expected an object"),
        ({"id2label": {"0": "no", "1": None}}, "names a label None, expected a text"),
        ({"id2label": {"0": "same", "1": "same"}}, "several ids the name 'same'"),
        ({"num_labels": "3"}, "num_labels is '3', expected a number"),
        ({"num_labels": 0}, "num_labels is 0, expected a number"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000"),
        (
            {"problem_type": "ranking"},
            "problem_type is 'ranking', expected one of single_label_classification",
        ),
        ({"pad_token_id": "0"}, "pad_token_id is '0', expected a token id"),
    ],
)
def test_a_head_that_is_described_wrongly_is_refused(
    values: dict[str, Any], says: str, checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        read_head(values)
    config = tmp_path / "config.json"
    shutil.copy(checkpoints[2] / "config.json", config)
    described(tmp_path, values)
    with pytest.raises(CheckpointError, match=f"config.json: .*{says}"):
        load_config(tmp_path)


def test_an_artifact_whose_labels_do_not_fit_its_head_is_refused(
    artifacts: dict[int, Path], tmp_path: Path
) -> None:
    artifact = described(shutil.copytree(artifacts[1], tmp_path / "artifact"), {"id2label": THREE})
    refresh(artifact)
    with pytest.raises(
        ArtifactError, match=r"config\.json names 3 labels, and the head has 1 outputs"
    ):
        gptx.load(artifact)


@pytest.mark.parametrize(
    "name", ["ForTokenClassification", "ForQuestionAnswering", "ForRewardModel"]
)
def test_other_heads_are_refused_by_name(
    name: str, checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    config = json.loads((checkpoints[2] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [f"GPT2{name}"]}))
    with pytest.raises(CheckpointError, match=f"architectures names GPT2{name}"):
        load_config(tmp_path)


def test_the_command_prints_what_a_head_says(artifacts: dict[int, Path], tmp_path: Path) -> None:
    artifact = described(
        shutil.copytree(artifacts[3], tmp_path / "artifact"), CASES["several at once"][1]
    )
    refresh(artifact)
    (tmp_path / "texts.txt").write_text("the cat\na dog\n")
    found = gptx.load(artifact).classify(["the cat", "a dog"])
    printed = command(
        "classify", "-m", artifact, "--file", tmp_path / "texts.txt"
    ).text.splitlines()
    assert printed == [
        ", ".join(f"{label} {value:.4f}" for label, value in result.probabilities.items())
        for result in found
    ]
    as_json = json.loads(command("classify", "-m", artifact, "a dog", "--json").text)
    assert as_json["problem_type"] == "multi_label_classification"
    assert as_json["probabilities"] == found[1].probabilities
    one = command("classify", "-m", artifacts[3], "a dog").text
    assert one == f"{gptx.load(artifacts[3]).classify('a dog').label}\n"


def test_other_labels_are_refused(artifacts: dict[int, Path]) -> None:
    with pytest.raises(UsageError, match="whose labels are LABEL_0: leave other labels out"):
        gptx.load(artifacts[1]).classify("a dog", ["stars"])


def test_a_sigmoid_of_large_logits_is_finite() -> None:
    head = Head(("one",))
    assert values_of(head, np.array([-1000.0])) == 0 and values_of(head, np.array([1000.0])) == 1

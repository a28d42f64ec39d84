"""gptx merge, and gptx export of an adapter.

The merged weights are those of transformers and PEFT; the other files are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import gptx
from builders.adapters import IDS, adapted, base, saved, shape
from builders.gptx_command import gptx as command
from gptx.artifact.folders import kind_of
from gptx.artifact.task import Task, read_task
from gptx.errors import CheckpointError, OutputError, UsageError
from gptx_models.adapters.lora import Lora
from gptx_models.adapters.merge import command as merge_command
from gptx_models.adapters.merge import merge
from gptx_models.adapters.peft_files import load_adapter
from gptx_models.checkpoints.checkpoint import load_config, load_model


def test_merge_writes_a_checkpoint_that_export_takes(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    done = CliRunner().invoke(merge_command, [str(adapter), str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        expected = load_adapter(adapter)(IDS)
        torch.testing.assert_close(load_model(tmp_path / "merged")(IDS), expected)
    assert json.loads((tmp_path / "merged/gptx_source.json").read_text())["format"] == "gptx-merge"
    assert command("export", str(adapter), str(tmp_path / "artifact")).status == 0
    with gptx.load(tmp_path / "artifact").session() as session:
        logits = session.feed([IDS[0].tolist()], all_logits=True)[0]
    torch.testing.assert_close(torch.from_numpy(logits), expected[0], atol=1e-4, rtol=1e-3)


def with_tokenizer(folder: Path, **files: str) -> Path:
    """Write a word-level tokenizer of 64 words and other files into a folder."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(folder / "tokenizer.json"))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_merge_keeps_what_lies_beside_the_weights(tmp_path: Path):
    """The adapter's files win over the base's.

    Ids of special tokens that only config.json states are kept.
    """
    _, adapter = saved(tmp_path, "llama", Lora(rank=2))
    with_tokenizer(tmp_path / "base", chat_template__jinja="base's")
    (tmp_path / "base/generation_config.json").write_text('{"temperature": 0.5}')
    (adapter / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    (adapter / "gptx_source.json").write_text('{"format": "gptx-finetune", "licence": "cc0-1.0"}')
    (adapter / "gptx_task.json").write_text('{"kind": "completion"}')
    merge(adapter, tmp_path / "out")
    assert load_config(tmp_path / "out").vocab_size == 64
    assert (tmp_path / "out/chat_template.jinja").read_text() == "base's"
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {
        "temperature": 0.5,
        "eos_token_id": [5, 2],
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    assert read_task(tmp_path / "out") == Task("completion")
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert source["adapter"]["format"] == "gptx-finetune" and source["base"] == {"name": "base"}
    assert source["name"] == "adapter" and source["licence"] == "cc0-1.0"
    with_tokenizer(adapter, chat_template__jinja="adapter's")
    merge(adapter, tmp_path / "out", force=True)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "adapter's"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_weights_have_the_type_of_the_base(dtype: torch.dtype, tmp_path: Path):
    """The sum is rounded once, as transformers rounds it.

    Weights that the adapter does not change keep their bits.
    """
    _, adapter = saved(tmp_path, "llama", Lora(rank=2, targets=("k_proj",)))
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).save_pretrained(
        tmp_path / "base"
    )
    merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "exact", exact=True)
    before = load_file(tmp_path / "base/model.safetensors")
    rounded, exact = (
        load_file(tmp_path / name / "model.safetensors") for name in ("merged", "exact")
    )
    assert set(rounded) == set(before) and all(
        value.dtype == torch.float32 for value in exact.values()
    )
    for name, value in rounded.items():
        assert torch.equal(value, exact[name].to(dtype)) and torch.equal(value, before[name]) == (
            "k_proj" not in name
        )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == dtype


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_merged_classifier_is_one_of_transformers(family: str, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(
        base(tmp_path / "base", family), num_labels=2
    )
    theirs = adapted(model, tmp_path / "adapter", task_type="SEQ_CLS")
    (tmp_path / "adapter/gptx_task.json").write_text(
        '{"kind": "classify", "labels": ["bad", "good"], "head": true}'
    )
    (tmp_path / "adapter/generation_config.json").write_text('{"pad_token_id": 0}')
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label == {0: "bad", 1: "good"}
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-4)


def test_a_merged_classifier_has_the_labels_of_its_base(tmp_path: Path):
    names = {
        "id2label": {0: "bad", 1: "fair", 2: "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2},
    }
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(**shape("llama").to_diff_dict() | names)
    )
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted(model, tmp_path / "adapter", task_type="SEQ_CLS")
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert list(json.loads((tmp_path / "merged/config.json").read_text())["id2label"].values()) == [
        "bad",
        "fair",
        "good",
    ]


def test_a_base_beside_the_adapter_is_found(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "../base"})
    )
    assert load_adapter(adapter).config.n_layer == 2


def test_what_merge_refuses(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    with pytest.raises(UsageError, match="choose another path"):
        merge(adapter, tmp_path / "base", force=True)
    shutil.copytree(adapter, tmp_path / "other")
    with pytest.raises(OutputError, match="--force"):
        merge(adapter, tmp_path / "other")
    merge(adapter, tmp_path / "other", force=True)
    assert kind_of(tmp_path / "other") == "checkpoint"
    with pytest.raises(CheckpointError, match="is no adapter folder"):
        merge(tmp_path / "base", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        merge(tmp_path / "nowhere", tmp_path / "out")
    (adapter / "adapter_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        merge(adapter, tmp_path / "out")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no adapter_model.safetensors"):
        merge(adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "other"}


def test_export_takes_an_adapter_with_all_its_options(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    plan = command("export", str(adapter), str(tmp_path / "artifact"), "--dry-run")
    assert plan.status == 0 and "parameters" in plan.text and not (tmp_path / "artifact").exists()
    words = with_tokenizer(tmp_path / "base") / "tokenizer.json"
    words.rename(tmp_path / "words.json")
    done = command(
        "export",
        str(adapter),
        str(tmp_path / "artifact"),
        "--tokenizer",
        str(tmp_path / "words.json"),
    )
    assert done.status == 0, done.err
    assert (
        json.loads((tmp_path / "artifact/gptx.json").read_text())["source"]["format"]
        == "gptx-merge"
    )
    with gptx.load(tmp_path / "artifact") as model:
        assert model.generate("w3 w4", max_new_tokens=2).prompt_tokens == 2
    refused = command("export", str(adapter), str(tmp_path / "x"), "--via", "optimum")
    assert refused.status == 1 and "gptx merge" in refused.err
    refused = command("import", str(adapter), str(tmp_path / "x"))
    assert refused.status == 1 and "gptx merge" in refused.err

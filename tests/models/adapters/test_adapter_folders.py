"""Adapters in folders that also hold a config.json or a whole model.

transformers is the reference.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.adapters import IDS, saved
from builders.gptx_command import gptx as command
from gptx.artifact.folders import kind_of
from gptx.errors import ArtifactError, CheckpointError, GptxError
from gptx_models.adapters.lora import Lora
from gptx_models.adapters.merge import merge
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.gpt.model import GPT
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")  # the independent reference
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Path, Path]:
    """(the adapted model, the adapter's folder, the base's folder)"""
    folder = tmp_path_factory.mktemp("made")
    gpt, adapter = saved(folder, "llama", Lora(rank=2, alpha=4.0))
    return gpt, adapter, folder / "base"


@pytest.fixture
def with_config(made: tuple[GPT, Path, Path], tmp_path: Path) -> Path:
    """The adapter with its base's config.json beside it, as axolotl and LLaMA-Factory write it."""
    folder = Path(shutil.copytree(made[1], tmp_path / "with config"))
    shutil.copy(made[2] / "config.json", folder)
    return folder


@pytest.fixture
def whole(made: tuple[GPT, Path, Path], with_config: Path) -> Path:
    """The same, with the weights of a model that is not the base that the adapter names."""
    save_file({name: value * 2 for name, value in load_file(made[2] / "model.safetensors").items()},
              with_config / "model.safetensors", {"format": "pt"})  # fmt: skip
    return with_config


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out = model.eval()(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("kind", ["with_config", "whole"])
def test_the_base_that_it_names_is_adapted(
    kind: str,
    made: tuple[GPT, Path, Path],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(kind)
    theirs = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    assert merge(folder, tmp_path / "out") == made[2]
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(made[0]), theirs, atol=1e-4, rtol=0)
    told = (
        f"holds a whole model too, which is not read: the adapter is for {made[2]}"
        in capsys.readouterr().err
    )
    assert told == (kind == "whole")


def test_shards_and_torchs_files_are_a_whole_model_too(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ):
        (whole / "model.safetensors").unlink(missing_ok=True)
        (whole / name).write_text("{}")
        merge(whole, tmp_path / "out", force=True)
        assert "holds a whole model too" in capsys.readouterr().err
        (whole / name).unlink()


VERBS: dict[str, Callable[[Path, Path], Any]] = {
    "import": lambda folder, out: import_checkpoint(str(folder), out),
    "load": lambda folder, out: load_model(folder),
    "config": lambda folder, out: load_config(folder),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["with_config", "whole"])
def test_what_takes_a_checkpoint_calls_it_an_adapter(
    verb: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    assert kind_of(folder) == "adapter"
    with pytest.raises(CheckpointError, match="is a LoRA adapter.*gptx merge .* OUT makes"):
        VERBS[verb](folder, tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ("train", "{text}", "--from", "{folder}", "--out", "{out}"),
        ("inspect", "{folder}"),
        ("run", "-m", "{folder}", "a"),
        ("finetune", "{folder}", "{rows}", "--task", "text", "--out", "{out}"),
        ("quantize", "{folder}", "{out}", "--to", "int8"),
        ("export", "{folder}", "{out}", "--via", "optimum"),
    ],
)
def test_every_verb(words: tuple[str, ...], with_config: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 50)
    (tmp_path / "rows.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 50)
    paths = {
        "text": tmp_path / "text.txt",
        "rows": tmp_path / "rows.jsonl",
        "out": tmp_path / "out",
        "folder": with_config,
    }
    outcome = command(*(word.format(**paths) for word in words))
    assert outcome.status == 1 and "adapter" in outcome.err.replace(str(tmp_path), "")
    assert "missing" not in outcome.err and not (tmp_path / "out").exists()


def test_its_base_is_not_here(whole: Path, made: tuple[GPT, Path, Path], tmp_path: Path) -> None:
    path = whole / "adapter_config.json"
    for name in ("org/model", None):
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name})
        )
        with pytest.raises(
            CheckpointError,
            match=f"a whole model and an adapter for ({name}|a base).*not here.*--base",
        ):
            merge(whole, tmp_path / "out")
    merge(whole, tmp_path / "out", base=made[2])
    torch.testing.assert_close(
        logits(load_model(tmp_path / "out")), logits(made[0]), atol=1e-4, rtol=0
    )
    (whole / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="adapts a base that it does not name, which is not here"
    ):
        merge(whole, tmp_path / "more")


def test_an_adapter_for_the_model_in_its_own_folder(
    whole: Path, made: tuple[GPT, Path, Path], tmp_path: Path
) -> None:
    """transformers applies such an adapter; gptx says how to."""
    path = whole / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(whole)})
    )
    for base in (None, whole):
        with pytest.raises(
            CheckpointError, match="adapts the model in its own folder: move adapter_config.json"
        ):
            merge(whole, tmp_path / "out", base=base)
    theirs = logits(transformers.AutoModelForCausalLM.from_pretrained(whole))
    (tmp_path / "apart").mkdir()
    for file in whole.glob("adapter_*"):
        file.rename(tmp_path / "apart" / file.name)
    merge(tmp_path / "apart", tmp_path / "out", base=whole)
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), theirs, atol=1e-4, rtol=0)


def test_a_base_that_is_an_adapter_and_a_folder_of_adapters(
    made: tuple[GPT, Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made[1], tmp_path / "adapter"))
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(made[1])})
    )
    with pytest.raises(CheckpointError, match="is a LoRA adapter, not a checkpoint"):
        merge(folder, tmp_path / "out")
    with pytest.raises(
        CheckpointError, match="has no adapter_config.json, but holds adapters: adapter: name one"
    ):
        merge(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "kind", ["IA3", "LOHA", "PREFIX_TUNING", "PROMPT_TUNING", "ADALORA", ["LORA"]]
)
def test_adapters_of_other_kinds(kind: Any, with_config: Path, tmp_path: Path) -> None:
    path = with_config / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": kind}))
    with pytest.raises(CheckpointError, match="adapter of the kind .*, and gptx reads LORA"):
        merge(with_config, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": True}, "r is True"),
        ({"r": 2**70}, "r is .*at most"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"r": "2"}, "r is '2'"),
    ],
)
def test_numbers_that_are_none(
    changes: dict[str, Any], says: str, with_config: Path, tmp_path: Path
) -> None:
    path = with_config / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {says}"):
        merge(with_config, tmp_path / "out")


def test_values_that_are_no_numbers(with_config: Path, tmp_path: Path) -> None:
    weights = load_file(with_config / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    weights[name][1, 2] = float("nan")
    save_file(weights, with_config / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} holds nan at \[1, 2\]"):
        merge(with_config, tmp_path / "out")
    weights[name][1, 2] = 1e30
    save_file(
        {n: w * 1e10 if "lora_B" in n else w for n, w in weights.items()},
        with_config / "adapter_model.safetensors",
    )
    with pytest.raises(
        CheckpointError, match=r"merged into .*: blocks.1.attn.qkv.weight holds -?inf"
    ):
        merge(with_config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_artifact_with_an_adapters_configuration_is_an_artifact(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["shared"], tmp_path / "artifact"))
    (folder / "adapter_config.json").write_text("{}")
    assert kind_of(folder) == "artifact"
    with pytest.raises((CheckpointError, ArtifactError)) as caught:
        load_config(folder)
    assert isinstance(caught.value, GptxError) and "is an ONNX artifact" in str(caught.value)

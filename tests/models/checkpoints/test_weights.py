"""Weights that are not what config.json says.

NaN, tied heads that differ from the embedding, names of wrapper modules, and tensors that no
parameter reads: each is read as transformers reads it, or refused by name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.gptx_command import gptx as command
from builders.tiny_artifact import refresh
from gpt_export.export import export_checkpoint
from gpt_export.graph.stored_weights import read_graph
from gpt_export.quantization.quantize import quantize_artifact
from gpt_export.via_optimum.quantize import quantize_graph
from gptx.artifact.layout import GRAPH
from gptx.errors import ArtifactError, CheckpointError, UsageError
from gptx.inspect import describe
from gptx_models.checkpoints.check_weights import _CHUNK, check_finite
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.checkpoints.tensor_files import open_folder, write_safetensors
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")  # the independent reference

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]])
SHAPES: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=24, n_layer=2, n_head=3),
    "llama": transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    ),
}


def written(folder: Path, family: str = "llama", **changes: Any) -> Path:
    torch.manual_seed(0)
    config = type(SHAPES[family])(**{**SHAPES[family].to_dict(), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(
        {name: value.clone() for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def ours(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS)


def theirs(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


# --- NaN and infinity -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("family", "name", "place"),
    [
        ("llama", "model.embed_tokens.weight", (50, 3)),
        ("llama", "model.layers.1.self_attn.k_proj.weight", (3, 4)),
        ("llama", "model.norm.weight", (31,)),
        ("gpt2", "transformer.wpe.weight", (23, 0)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (2, 50)),  # stored transposed
        ("gpt2", "transformer.h.1.mlp.c_fc.bias", (7,)),
    ],
)
def test_a_checkpoint_with_a_value_that_is_no_number(
    family: str, name: str, place: tuple[int, ...], value: float, tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", family)
    weights = tensors(folder)
    weights[name][place] = value
    rewrite(folder, weights)
    index = ", ".join(map(str, place))
    says = rf"model.safetensors: {name} holds {value} at \[{index}\], which is no weight"
    for act in (
        lambda: import_checkpoint(str(folder), tmp_path / "out"),
        lambda: export_checkpoint(folder, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=says):
            act()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "{model}", "{rows}", "--lora"),
        ("merge", "{adapter}", "{out}", "--base", "{model}"),
    ],
)
def test_verbs_that_read_a_checkpoint(
    words: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    weights = tensors(folder)
    weights["transformer.wte.weight"][290, 1] = float("nan")
    rewrite(folder, weights)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 40)
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"]}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.transformer.h.0.attn.c_attn"
    save_file(
        {
            f"{module}.lora_A.weight": torch.zeros(2, 64),
            f"{module}.lora_B.weight": torch.zeros(192, 2),
        },
        tmp_path / "adapter/adapter_model.safetensors",
    )
    paths = {"model": "model", "rows": "rows.jsonl", "adapter": "adapter", "out": "out"}
    given = [
        word.format(**{name: tmp_path / path for name, path in paths.items()}) for word in words
    ]
    given += ["--task", "completion", "--steps", "1"] if words[0] == "finetune" else []
    given += [] if words[0] == "merge" else ["--out", str(tmp_path / "out")]
    outcome = command(*given)
    assert (
        outcome.status == 1
        and "transformer.wte.weight holds nan at [290, 1]" in outcome.err.splitlines()[-1]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["int8", "int8-channels", "int8-fast", "int4", "int4-fast", "fp16"])
def test_an_artifact_with_a_value_that_is_no_number(to: str, fp32: Path, tmp_path: Path) -> None:
    """The NaN is in the row of a token that no text holds, so the certificate would miss it."""
    folder = Path(shutil.copytree(fp32, tmp_path / "artifact"))
    spoil(folder, "wte.weight", (303, 5), float("nan"))
    with pytest.raises(
        ArtifactError, match=r"wte.weight holds nan at \[303, 5\], which is no weight"
    ):
        quantize_artifact(folder, tmp_path / "out", to=to, accept=True)
    assert not (tmp_path / "out").exists()


def test_a_budget_of_an_artifact_with_a_value_that_is_no_number(fp32: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fp32, tmp_path / "artifact"))
    spoil(folder, "wte.weight", (303, 5), float("inf"))
    outcome = command("quantize", folder, tmp_path / "out", "--budget", "ppl=+50%")
    assert (
        outcome.status == 1 and "wte.weight holds inf at [303, 5]" in outcome.err.splitlines()[-1]
    )


def spoil(folder: Path, name: str, place: tuple[int, ...], value: float) -> None:
    """Change one weight of an fp32 artifact, and make gptx.json fit."""
    stored = read_graph(folder / GRAPH).graph.initializers[name].const_value
    assert isinstance(stored, ir.ExternalTensor)
    at = (stored.offset or 0) + 4 * int(np.ravel_multi_index(place, stored.numpy().shape))
    with (folder / "onnx/model.onnx_data").open("r+b") as file:
        file.seek(at)
        file.write(np.float32(value).tobytes())
    refresh(folder)


def test_weights_beyond_fp16(fp32: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fp32, tmp_path / "artifact"))
    spoil(folder, "wte.weight", (303, 5), -70000.0)
    with pytest.raises(UsageError, match="fp16, which ends at 65,504: wte.weight holds 70,000"):
        quantize_artifact(folder, tmp_path / "out", to="fp16", accept=True)
    with pytest.raises(CheckpointError, match=r"model.norm.weight, in F16, holds inf at \[2\]"):
        write_safetensors(
            tmp_path / "x",
            [("model.norm.weight", (3,), lambda: torch.tensor([1.0, 2.0, 1e6]))],
            "F16",
        )


@pytest.mark.parametrize(
    ("to", "value", "says"), [("int8", float("nan"), "holds nan"), ("fp16", 1e5, "holds 100,000")]
)
def test_graphs_of_optimum(to: str, value: float, says: str, fp32: Path, tmp_path: Path) -> None:
    """Graphs of optimum are quantized without a PyTorch module; here our own graph is."""
    folder = Path(shutil.copytree(fp32, tmp_path / "artifact"))
    spoil(folder, "wte.weight", (303, 5), value)
    with pytest.raises((ArtifactError, UsageError), match=says):
        quantize_graph(folder / GRAPH, tmp_path / "out.onnx", to)


def test_finite_numbers_with_an_infinite_sum_are_weights() -> None:
    value = torch.full((3, _CHUNK // 2 + 5), 1e38)
    check_finite(value, "a", "here")
    value[2, 7] = float("inf")
    with pytest.raises(CheckpointError, match=r"a holds inf at \[2, 7\]"):
        check_finite(value, "a", "here")
    check_finite(torch.full((9,), 6e4, dtype=torch.float16), "a", "here")
    check_finite(torch.empty(0, 4), "a", "here")


# --- tied heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "embedding"),
    [("gpt2", "transformer.wte.weight"), ("llama", "model.embed_tokens.weight")],
)
def test_a_tied_head(family: str, embedding: str, tmp_path: Path) -> None:
    folder = written(tmp_path, family)
    expected, weights = ours(folder), tensors(folder)
    torch.testing.assert_close(expected, theirs(folder), atol=1e-4, rtol=0)
    rewrite(folder, {**weights, "lm_head.weight": weights[embedding].clone()})
    assert torch.equal(ours(folder), expected)  # the same twice
    head = weights[embedding].clone()
    head[-1, -1] += 1e-3
    rewrite(folder, {**weights, "lm_head.weight": head})
    # transformers 4.57 ties the two without a word; version 5 and llama.cpp take the head. So the
    # user has to say which one is meant.
    with pytest.raises(
        CheckpointError,
        match=rf"lm_head.weight differs from {embedding}, and the configuration ties",
    ):
        ours(folder)
    rewrite(folder, {**weights, "lm_head.weight": head[:-1]})
    with pytest.raises(CheckpointError, match="lm_head.weight differs"):
        ours(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    rewrite(folder, {**weights, "lm_head.weight": head})
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)
    # safetensors' save_model keeps one name of a shared tensor, which may be the head's
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    rewrite(
        folder,
        {
            **{n: w for n, w in weights.items() if n != embedding},
            "lm_head.weight": weights[embedding],
        },
    )
    assert torch.equal(ours(folder), expected)


# --- wrappers -------------------------------------------------------------------------------------

WRAPPERS = [
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_fsdp_wrapped_module._orig_mod.",
    "module.base_model.model.",
    "model.",
    "_forward_module.",
    "pretrained_model.",
    "module.module.",
]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_wrappers(wrapper: str, binary: bool, tmp_path: Path) -> None:
    folder = written(tmp_path)
    expected, weights = ours(folder), tensors(folder)
    wrapped = {f"{wrapper}{name}": value for name, value in weights.items()}
    if binary:
        (folder / "model.safetensors").unlink()
        torch.save(wrapped, folder / "pytorch_model.bin")
    else:
        rewrite(folder, wrapped)
    assert torch.equal(ours(folder), expected)
    import_checkpoint(str(folder), tmp_path / "imported")
    source = json.loads((tmp_path / "imported/gptx_source.json").read_text())
    assert set(source["tensor_types"]) == set(open_folder(tmp_path / "imported").shapes)


@pytest.mark.parametrize("tied", [True, False])
def test_lightning_calls_the_model_model(tied: bool, tmp_path: Path) -> None:
    """The prefix "model." is a wrapper's around GPT-2, though it is llama's own prefix."""
    folder = written(tmp_path, "gpt2", tie_word_embeddings=tied)
    expected, weights = ours(folder), tensors(folder)
    bare = {name.removeprefix("transformer."): value for name, value in weights.items()}
    for names in (weights, bare) if tied else (weights,):
        assert torch.equal(
            ours(rewrite(folder, {f"model.{name}": value for name, value in names.items()})),
            expected,
        )


def test_layers_that_were_compiled_one_by_one(tmp_path: Path) -> None:
    folder = written(tmp_path)
    expected, weights = ours(folder), tensors(folder)
    rewrite(
        folder,
        {
            name.replace("layers.1.", "layers.1._orig_mod."): value
            for name, value in weights.items()
        },
    )
    assert torch.equal(ours(folder), expected)
    rewrite(folder, {**weights, "_orig_mod.model.norm.weight": weights["model.norm.weight"]})
    with pytest.raises(CheckpointError, match="model.norm.weight is there twice"):
        ours(folder)


def test_a_prefix_of_some_names_is_none_of_a_wrapper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    weights = tensors(folder)
    rewrite(
        folder,
        {("module." if "norm" in name else "") + name: value for name, value in weights.items()},
    )
    capsys.readouterr()
    with pytest.raises(CheckpointError, match="missing tensors: .*model.norm.weight"):
        ours(folder)
    assert "another head" not in capsys.readouterr().err


def test_an_adapter_that_was_not_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = written(tmp_path)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(r=2)
    )
    rewrite(
        folder, {name: value for name, value in model.state_dict().items() if "lm_head" not in name}
    )
    with pytest.raises(
        CheckpointError, match=r"adapter was not merged \(.*lora_A.*merge_and_unload\(\)"
    ):
        ours(folder)
    merged = {
        f"base_model.model.{name}": value
        for name, value in model.merge_and_unload().state_dict().items()
    }
    assert torch.isfinite(ours(rewrite(folder, {n: w.clone() for n, w in merged.items()}))).all()


# --- tensors that nothing reads -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.mlp.up_proj.weight",
        "lm_head.bias",
        "model.norm.bias",
        "model.layers.0.self_attn.sinks",
        "model.layers.1.mlp.experts.0.up_proj.weight",
    ],
)
def test_tensors_that_would_change_what_is_computed_are_refused(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, tie_word_embeddings=False)
    rewrite(folder, {**tensors(folder), name: torch.ones(8)})
    with pytest.raises(CheckpointError, match=f"unexpected tensors: {name}$"):
        ours(folder)


@pytest.mark.parametrize(
    "name",
    ["v_head.summary.weight", "score.weight", "classifier.bias", "multiple_choice_head.weight"],
)
def test_heads_for_other_tasks_are_told_and_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    expected = ours(folder)
    rewrite(folder, {**tensors(folder), name: torch.ones(8)})
    capsys.readouterr()
    assert torch.equal(ours(folder), expected)  # as in transformers, which warns of it
    torch.testing.assert_close(theirs(folder), expected, atol=1e-4, rtol=0)
    ours(folder)
    assert f"tensors of another head, which are left out: {name}" in capsys.readouterr().err


def test_buffers_of_old_versions_carry_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    buffers = {
        f"model.layers.0.self_attn.rotary_emb.{name}": torch.ones(4)
        for name in ("inv_freq", "cos_cached", "sin_cached")
    }
    expected = ours(folder)
    rewrite(folder, {**tensors(folder), **buffers})
    assert torch.equal(ours(folder), expected)
    assert "left out" not in capsys.readouterr().err


# --- files ----------------------------------------------------------------------------------------


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = written(tmp_path)
    weights = tensors(folder)
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        save_file(weights, folder / f"model-{number}.safetensors", {"format": "pt"})
    index = {
        "weight_map": {name: f"model-{1 + at % 2}.safetensors" for at, name in enumerate(weights)}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match="in two files, .*model-1.safetensors and .*model-2.safetensors"
    ):
        ours(folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (
            {"weight_map": {"a": "../outside.safetensors"}},
            "names files outside its folder: ../outside.safetensors",
        ),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({"weight_map": {"a": 5}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_indices_that_are_none(index: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=says):
        ours(folder)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_weights_of_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = written(tmp_path)
    weights = tensors(folder)
    (folder / "model.safetensors").unlink()
    torch.save(
        {**weights, "model.norm.weight": torch.ones(32).to(dtype)}, folder / "pytorch_model.bin"
    )
    with pytest.raises(CheckpointError, match="in floating point: model.norm.weight is"):
        ours(folder)


def test_links_and_folders_in_place_of_weights(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    file = folder / "model.safetensors"
    file.unlink()
    for make, says in (
        (
            lambda: file.symlink_to("blobs/1"),
            "is a link to blobs/1, which is not there|a link that leads nowhere",
        ),
        (
            lambda: file.symlink_to(file.name),
            "is a link to model.safetensors, which is not|a link that leads nowhere",
        ),
        (file.mkdir, "is not a file"),
    ):
        make()
        for read in (ours, describe):
            with pytest.raises(CheckpointError, match=f"model.safetensors ({says})|is ({says})"):
                read(folder)
        file.rmdir() if file.is_dir() else file.unlink()


def test_weights_under_other_names_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "consolidated.00.pth").touch()
    with pytest.raises(
        CheckpointError, match="no weights: .*found consolidated.00.pth, model.fp16.safetensors"
    ):
        ours(folder)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            {"state_dict": {}, "epoch": 3},
            "state_dict is of type dict, epoch is of type int: save the model's own",
        ),
        ({7: torch.ones(2)}, "7 is no name"),
        ([1], r"it holds \[1\], expected tensors by name"),
        (Path("x"), "save it again as safetensors"),
    ],
    ids=["nested", "a number as name", "a list", "Python objects"],
)
def test_torchs_files_that_hold_other_things(entry: Any, says: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    weights = tensors(folder)
    (folder / "model.safetensors").unlink()
    torch.save(
        {**weights, **entry} if isinstance(entry, dict) else entry, folder / "pytorch_model.bin"
    )
    with pytest.raises(CheckpointError, match=f"pytorch_model.bin .*{says}") as caught:
        ours(folder)
    assert "allow-pickle" not in str(caught.value)  # no verb has that option for a folder

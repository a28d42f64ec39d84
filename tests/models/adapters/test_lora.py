"""LoRA against PEFT: PEFT computes our adapters as we do, and we read PEFT's adapters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import gptx
from builders.adapters import IDS, WINDOW, adapted, base, randomized, saved
from builders.gptx_command import gptx as command
from gptx.artifact.folders import kind_of
from gptx.errors import ArtifactError, CheckpointError, UsageError
from gptx_models.adapters.lora import Lora, adapted_modules, add_lora, merge_lora
from gptx_models.adapters.merge import command as merge_command
from gptx_models.adapters.peft_files import load_adapter, save_adapter
from gptx_models.checkpoints.checkpoint import load_config, load_model, read_family, save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.training.distributed import Processes
from gptx_models.training.run_state import full_weights

TARGETS = [
    ("gpt2", None),
    ("gpt2", ("c_proj",)),  # of attention and of the feed-forward
    ("gpt2", ("all-linear",)),
    ("llama", None),
    ("llama", ("k_proj", "up_proj", "o_proj")),
    ("llama", ("all-linear",)),
]


@pytest.mark.parametrize(("family", "targets"), TARGETS)
def test_peft_computes_what_we_do(family: str, targets: tuple[str, ...] | None, tmp_path: Path):
    gpt, adapter = saved(tmp_path, family, Lora(rank=4, alpha=12.0, targets=targets))
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter
    ).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(gpt(IDS), expected, atol=1e-5, rtol=1e-4)
        assert (expected - load_model(tmp_path / "base")(IDS)).abs().max() > 0.01
        torch.testing.assert_close(load_adapter(adapter)(IDS), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(merge_lora(gpt)(IDS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "targets"), TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_is_read(
    family: str, targets: tuple[str, ...] | None, rslora: bool, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", family))
    wanted = "all-linear" if targets == ("all-linear",) else list(targets) if targets else None
    theirs = adapted(
        model, tmp_path / "adapter", r=3, lora_alpha=9, target_modules=wanted, use_rslora=rslora
    )
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(
            load_adapter(tmp_path / "adapter")(IDS), expected, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "options", [{"target_modules": r".*\.0\..*(q|up)_proj"}, {"layers_to_transform": [1]}]
)
def test_modules_by_a_pattern(options: dict, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", "llama"))
    theirs = adapted(
        model, tmp_path / "adapter", **{"target_modules": ["q_proj", "up_proj"], **options}
    )
    with torch.no_grad():
        torch.testing.assert_close(
            load_adapter(tmp_path / "adapter")(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-4
        )


def test_a_model_that_we_write_in_a_form_of_our_own(tmp_path: Path):
    """A Mistral with a window, which gptx writes as model_type gptx.

    An adapter for the original keeps llama's names, so PEFT reads it.
    """
    assert IDS.shape[1] > WINDOW
    kept = base(tmp_path / "base", "mistral")
    model = AutoModelForCausalLM.from_pretrained(kept, attn_implementation="eager")
    theirs = adapted(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(
            load_adapter(tmp_path / "adapter")(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-4
        )
    gpt = randomized(add_lora(load_model(kept), Lora(), read_family(kept)))
    (tmp_path / "ours").mkdir()
    save_adapter(gpt, tmp_path / "ours", Lora(), base=kept, source={}, generation={})
    model = AutoModelForCausalLM.from_pretrained(kept, attn_implementation="eager")
    read = peft.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(gpt(IDS), read(IDS).logits, atol=1e-5, rtol=1e-4)


def test_an_adapter_of_2023(tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", "gpt2"))
    theirs = adapted(model, tmp_path / "adapter")
    theirs.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert not (tmp_path / "old/adapter_model.safetensors").exists()
    with torch.no_grad():
        torch.testing.assert_close(
            load_adapter(tmp_path / "old")(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("family", "targets"), [("gpt2", ("c_attn", "c_fc")), ("llama", ("all-linear",))]
)
def test_gradients_are_those_of_peft(family: str, targets: tuple[str, ...], tmp_path: Path):
    """Gradients in training, with dropout before A.

    PEFT draws one mask for each module, in the order of the forward pass.
    """
    gpt, adapter = saved(tmp_path, family, Lora(rank=4, alpha=12.0, targets=targets, dropout=0.5))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    torch.manual_seed(1)
    expected = theirs(IDS).logits
    torch.manual_seed(1)
    found = gpt.train()(IDS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for logits in (found, expected):
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), IDS.roll(-1, 1).flatten()
        ).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    count = 0
    for _, module in adapted_modules(gpt):
        for piece, a, b in zip(module.pieces, module.a, module.b):
            for kind, ours in (("A", a), ("B", b)):
                name = f"base_model.model.{piece.name}.lora_{kind}.default.weight"
                torch.testing.assert_close(ours.grad, gradients.pop(name), atol=1e-6, rtol=1e-4)
                count += 1
    assert count and not gradients


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classification_head_of_peft_is_read(family: str, tmp_path: Path):
    """PEFT names "classifier" and "score" in modules_to_save.

    The base here is the language model.
    """
    folder = base(tmp_path / "base", family)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = adapted(model, tmp_path / "adapter", task_type="SEQ_CLS")
    gpt = load_adapter(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(gpt(IDS)[:, -1], theirs(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_our_classification_head_is_read_by_peft(family: str, tmp_path: Path):
    folder = base(tmp_path / "base", family)
    loaded = load_model(folder)
    gpt = GPT(dataclasses.replace(loaded.config, n_class=3))
    gpt.load_state_dict(
        {k: v for k, v in loaded.state_dict().items() if "head" not in k}, strict=False
    )
    lora = Lora(rank=2, targets=("all-linear",))
    randomized(add_lora(gpt, lora))
    assert gpt.head.weight.requires_grad
    (tmp_path / "adapter").mkdir()
    save_adapter(gpt, tmp_path / "adapter", lora, base=folder, source={}, generation={})
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(gpt(IDS)[:, -1], theirs(IDS).logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            load_adapter(tmp_path / "adapter")(IDS), gpt(IDS), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_in_16_bits(stored: torch.dtype, autocast: bool, tmp_path: Path):
    """A and B stay fp32, and the logits equal those of fp32 to the base type's precision."""
    lora = Lora(rank=4, targets=("all-linear",))
    exact, _ = saved(tmp_path, "llama", lora)
    gpt = add_lora(load_model(tmp_path / "base").to(stored), lora)
    pairs = {name: p for name, p in exact.named_parameters() if p.requires_grad}
    assert set(gpt.load_state_dict(pairs, strict=False).missing_keys).isdisjoint(pairs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = gpt(IDS).float()
    logits.square().sum().backward()
    assert {p.grad.dtype for p in gpt.parameters() if p.grad is not None} == {torch.float32}
    with torch.no_grad():
        expected, without = exact(IDS), load_model(tmp_path / "base")(IDS)
    in_bf16 = autocast or stored is torch.bfloat16
    assert (logits - expected).norm() < (0.1 if in_bf16 else 1e-6) * (expected - without).norm()


def test_a_is_drawn_as_in_peft():
    """A is uniform with a variance of 1 / (3 n_in), B is zero."""
    torch.manual_seed(0)
    gpt = add_lora(
        GPT(GPTConfig(vocab_size=8, n_ctx=8, n_layer=1, n_head=1, n_embd=256)), Lora(rank=64)
    )
    a, b = gpt.blocks[0].attn.qkv.a[0], gpt.blocks[0].attn.qkv.b[0]
    assert (
        a.abs().max() <= 1 / 16
        and a.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02)
        and not b.any()
    )


def test_the_whole_model_where_others_hold_a_part():
    """On CUDA and with --shard a copy is saved, which has the adapter too."""
    gpt = randomized(
        add_lora(
            GPT(GPTConfig(vocab_size=64, n_ctx=32, n_layer=1, n_head=2, n_embd=16)), Lora(rank=2)
        )
    )
    whole = full_weights(gpt, Processes(torch.device("cpu"), shard=True)).eval()
    with torch.no_grad():
        assert whole is not gpt and torch.equal(whole(IDS), gpt(IDS))


def test_only_the_adapter_is_trained(tmp_path: Path):
    gpt = add_lora(load_model(base(tmp_path, "llama")), Lora(rank=2))
    trained = {name.rsplit(".", 2)[1] for name, p in gpt.named_parameters() if p.requires_grad}
    assert trained == {"a", "b"}
    gpt(IDS).sum().backward()
    assert all(p.grad is None for p in gpt.parameters() if not p.requires_grad)


def test_a_new_adapter_changes_nothing(tmp_path: Path):
    folder = base(tmp_path, "llama")
    with torch.no_grad():
        expected = load_model(folder)(IDS)
        assert torch.equal(
            add_lora(load_model(folder), Lora(targets=("all-linear",))).eval()(IDS), expected
        )


def test_a_base_that_moved_is_asked_for(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="which is not here: gptx merge .* --base CHECKPOINT"):
        load_adapter(adapter)
    done = CliRunner().invoke(
        merge_command, [str(adapter), str(tmp_path / "out"), "--base", str(tmp_path / "moved")]
    )
    assert done.exit_code == 0 and load_config(tmp_path / "out").n_layer == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"peft_type": "IA3"}, "is an adapter of the kind IA3, and gptx reads LORA"),
        ({"a_variant_of_2027": {"depth": 3}}, r"a_variant_of_2027 \{'depth': 3\}"),
        # PiSSA changes the base's weights before training
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"r": None}, "r is None, expected a positive whole number"),
        ({"rank_pattern": {"c_attn": 3}}, "rank_pattern"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 3}, r"r is 3, and the weights are of rank \[2\]"),
        # would allocate matrices of gigabytes
        ({"r": 2**24}, r"r is 16777216, and the weights are of rank \[2\]"),
        ({"modules_to_save": 5}, "modules_to_save 5"),
        ({"modules_to_save": [["score"]]}, r"modules_to_save \[\['score'\]\]"),
        ({"base_model_name_or_path": "a" * 5000}, "which is not here: gptx merge"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict, says: str, tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=says):
        load_adapter(adapter)


def test_modules_outside_the_layers_are_refused(tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", "llama"))
    adapted(model, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(CheckpointError, match="no matrix of the base's layers: lm_head"):
        load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_numbers_that_make_no_adapter(wrong: dict):
    with pytest.raises(UsageError, match="expected a rank of at least 1"):
        Lora(**wrong)


@pytest.mark.parametrize("target", ["q_proj", "attn", "proj"])  # the end of a name, from a dot on
def test_unknown_targets_are_named(target: str):
    with pytest.raises(
        UsageError,
        match=f"no module is called {target}: there are c_attn, c_fc, c_proj, or all-linear",
    ):
        add_lora(
            GPT(GPTConfig(vocab_size=8, n_ctx=8, n_layer=1, n_head=1, n_embd=8)),
            Lora(targets=(target,)),
        )


def test_an_adapter_is_no_checkpoint_and_no_artifact(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    assert kind_of(adapter) == "adapter"
    with pytest.raises(ArtifactError, match="LoRA adapter.*gptx export"):
        gptx.load(adapter)
    with pytest.raises(CheckpointError, match="LoRA adapter.*gptx merge"):
        load_model(adapter)
    refused = command("quantize", str(adapter), str(tmp_path / "x"), "--to", "int8")
    assert "is a LoRA adapter: export it first" in refused.err
    assert "make a model of it with gptx merge" in command("inspect", str(adapter)).err
    assert "gptx export" in command("run", "-m", str(adapter), "hi").err


def test_a_model_of_our_own_kind(tmp_path: Path):
    """A model with additive attention, which PEFT does not read; the format is the same."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=64, n_ctx=32, n_layer=1, n_head=2, n_embd=16, attention="additive"
    )
    save_checkpoint(
        GPT(config), tmp_path / "base", tokenizer_files=None, source={}, generation=None
    )
    lora = Lora(rank=2, targets=("qkv", "down"))
    gpt = randomized(add_lora(load_model(tmp_path / "base"), lora))
    (tmp_path / "adapter").mkdir()
    save_adapter(gpt, tmp_path / "adapter", lora, base=tmp_path / "base", source={}, generation={})
    with torch.no_grad():
        torch.testing.assert_close(
            load_adapter(tmp_path / "adapter")(IDS), gpt(IDS), atol=1e-5, rtol=1e-4
        )

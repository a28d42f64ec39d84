"""LoRA against PEFT: what we save it computes as we do, what it saves we read; and gptx merge, and export of an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import gptx
from gptx.errors import ArtifactError, CheckpointError, UsageError
from gptx.folders import kind_of
from gptx_command import gptx as command
from gptx_models.checkpoint import load_config, load_model, save_checkpoint
from gptx_models.config import GPTConfig
from gptx_models.lora import Lora, LoraLinear, add_lora, merge_lora
from gptx_models.merge import command as merge_command
from gptx_models.model import GPT
from gptx_models.peft_files import load_adapter, save_adapter

TARGETS = [
    ("gpt2", None),
    ("gpt2", ("c_proj",)),  # of attention and of the feed-forward
    ("gpt2", ("all-linear",)),
    ("llama", None),
    ("llama", ("k_proj", "up_proj", "o_proj")),
    ("llama", ("all-linear",)),
]


def base(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    else:
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, **shape))
    model.save_pretrained(folder)
    return folder


def randomized(gpt: GPT) -> GPT:
    """With a B that is not zero: an adapter that does something."""
    for module in gpt.modules():
        if isinstance(module, LoraLinear):
            for b in module.b:
                torch.nn.init.normal_(b, std=0.3)
    return gpt.eval()


def saved(tmp_path: Path, family: str, lora: Lora) -> tuple[GPT, Path]:
    """A GPT with its adapter, and the folder that it was saved in."""
    folder = base(tmp_path / "base", family)
    gpt = randomized(add_lora(load_model(folder), lora))
    (tmp_path / "adapter").mkdir()
    save_adapter(gpt, tmp_path / "adapter", lora, base=folder, source={}, generation={})
    return gpt, tmp_path / "adapter"


IDS = torch.arange(40).reshape(2, 20) % 64


@pytest.mark.parametrize(("family", "targets"), TARGETS)
def test_peft_computes_what_we_do(family: str, targets: tuple[str, ...] | None, tmp_path: Path):
    gpt, adapter = saved(tmp_path, family, Lora(rank=4, alpha=12.0, targets=targets))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(gpt(IDS), expected, atol=1e-5, rtol=1e-4)
        assert (expected - load_model(tmp_path / "base")(IDS)).abs().max() > 0.01
        torch.testing.assert_close(load_adapter(adapter)(IDS), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(merge_lora(gpt)(IDS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "targets"), TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_is_read(family: str, targets: tuple[str, ...] | None, rslora: bool, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", family))
    wanted = "all-linear" if targets == ("all-linear",) else list(targets) if targets else None
    config = peft.LoraConfig(
        r=3, lora_alpha=9, target_modules=wanted, use_rslora=rslora, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(load_adapter(tmp_path / "adapter")(IDS), expected, atol=1e-5, rtol=1e-4)


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
        assert torch.equal(add_lora(load_model(folder), Lora(targets=("all-linear",))).eval()(IDS), expected)


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


def test_a_base_that_moved_is_asked_for(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="which is not here: gptx merge .* --base CHECKPOINT"):
        load_adapter(adapter)
    done = CliRunner().invoke(merge_command, [str(adapter), str(tmp_path / "out"), "--base", str(tmp_path / "moved")])
    assert done.exit_code == 0 and load_config(tmp_path / "out").n_layer == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"rank_pattern": {"c_attn": 3}}, "rank_pattern"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 3}, r"has a \(2, 16\) .*lora_A.weight, expected one of \(3, 16\)"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict, says: str, tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=says):
        load_adapter(adapter)


def test_unknown_targets_are_named():
    with pytest.raises(UsageError, match="no module is called q_proj: there are c_attn, c_fc, c_proj, or all-linear"):
        add_lora(GPT(GPTConfig(vocab_size=8, n_ctx=8, n_layer=1, n_head=1, n_embd=8)), Lora(targets=("q_proj",)))


def test_an_adapter_is_no_checkpoint_and_no_artifact(tmp_path: Path):
    _, adapter = saved(tmp_path, "gpt2", Lora(rank=2))
    assert kind_of(adapter) == "adapter"
    with pytest.raises(ArtifactError, match="LoRA adapter.*gptx export"):
        gptx.load(adapter)
    with pytest.raises(CheckpointError, match="LoRA adapter.*gptx merge"):
        load_model(adapter)
    assert "gptx export" in command("quantize", str(adapter), str(tmp_path / "x"), "--to", "int8").err


def test_a_model_of_our_own_kind(tmp_path: Path):
    """Additive attention: no PEFT model reads it, and the format is the same."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, n_ctx=32, n_layer=1, n_head=2, n_embd=16, attention="additive")
    save_checkpoint(GPT(config), tmp_path / "base", tokenizer_files=None, source={}, generation=None)
    lora = Lora(rank=2, targets=("qkv", "down"))
    gpt = randomized(add_lora(load_model(tmp_path / "base"), lora))
    (tmp_path / "adapter").mkdir()
    save_adapter(gpt, tmp_path / "adapter", lora, base=tmp_path / "base", source={}, generation={})
    with torch.no_grad():
        torch.testing.assert_close(load_adapter(tmp_path / "adapter")(IDS), gpt(IDS), atol=1e-5, rtol=1e-4)

"""Tiny base models of transformers, and LoRA adapters on them, made by gptx or by PEFT."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from gptx_models.adapters.lora import Lora, adapted_modules, add_lora
from gptx_models.adapters.peft_files import save_adapter
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.gpt.model import GPT

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = 7


def shape(family: str) -> PretrainedConfig:
    if family == "gpt2":
        return GPT2Config(
            vocab_size=64,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            pad_token_id=0,
            **NO_DROPOUT,
        )
    common = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    if family == "mistral":
        common["sliding_window"] = WINDOW
    kind = MistralConfig if family == "mistral" else LlamaConfig
    return kind(vocab_size=64, hidden_size=16, intermediate_size=24, **common)


def base(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    kinds = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM, "mistral": MistralForCausalLM}
    kinds[family](shape(family)).save_pretrained(folder)
    return folder


def adapted(model: PreTrainedModel, folder: Path, **options) -> torch.nn.Module:
    """A PEFT model whose adapter changes the outputs. The adapter is saved in `folder`."""
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, **options}
    theirs = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    theirs.save_pretrained(folder)
    return theirs


def randomized(gpt: GPT) -> GPT:
    """The model with random LoRA matrices B; they begin as zeros, which change nothing."""
    for _, module in adapted_modules(gpt):
        for b in module.b:
            torch.nn.init.normal_(b, std=0.3)
    return gpt.eval()


def saved(tmp_path: Path, family: str, lora: Lora) -> tuple[GPT, Path]:
    """A GPT with an adapter, and the folder that the adapter was saved in."""
    folder = base(tmp_path / "base", family)
    gpt = randomized(add_lora(load_model(folder), lora))
    (tmp_path / "adapter").mkdir()
    save_adapter(gpt, tmp_path / "adapter", lora, base=folder, source={}, generation={})
    return gpt, tmp_path / "adapter"


IDS = torch.arange(40).reshape(2, 20) % 63 + 1

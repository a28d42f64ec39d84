"""A classification head as a checkpoint: transformers' ForSequenceClassification, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from gptx.artifact.class_head import Head
from gptx_models.checkpoints.checkpoint import load_config, load_model, save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

LABELS = ("bad", "fair", "good")
IDS = torch.arange(36).reshape(2, 18) % 63 + 1


def theirs(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "gpt2":
        shape = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
        return GPT2ForSequenceClassification(
            GPT2Config(vocab_size=64, num_labels=3, pad_token_id=0, **shape)
        )
    shape = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
    }
    return LlamaForSequenceClassification(
        LlamaConfig(vocab_size=64, hidden_size=16, num_labels=3, pad_token_id=0, **shape)
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_theirs_is_read(family: str, tmp_path: Path):
    model = theirs(family).eval()
    model.save_pretrained(tmp_path)
    gpt = load_model(tmp_path)
    assert gpt.config.n_class == 3
    with torch.no_grad():
        torch.testing.assert_close(gpt(IDS)[:, -1], model(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(vocab_size=64, n_ctx=32, n_layer=2, n_head=2, n_embd=16, n_class=3),
        GPTConfig(
            vocab_size=64,
            n_ctx=32,
            n_layer=2,
            n_head=4,
            n_kv_head=2,
            n_embd=16,
            n_inner=24,
            position="rope",
            norm="rmsnorm",
            activation="swiglu",
            attn_bias=False,
            mlp_bias=False,
            tied=False,
            n_class=3,
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_ours_is_read(config: GPTConfig, tmp_path: Path):
    torch.manual_seed(0)
    gpt = GPT(config).eval()
    tokens = {"pad_token_id": 0}
    save_checkpoint(
        gpt, tmp_path, tokenizer_files=None, source={}, generation=tokens, head=Head(LABELS, pad=0)
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert model.config.id2label == dict(enumerate(LABELS)) and load_config(tmp_path) == config
    with torch.no_grad():
        torch.testing.assert_close(gpt(IDS)[:, -1], model(IDS).logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(load_model(tmp_path)(IDS), gpt(IDS))


def test_a_model_of_our_own_kind_keeps_its_head(tmp_path: Path):
    config = GPTConfig(
        vocab_size=64, n_ctx=32, n_layer=1, n_head=2, n_embd=16, attention="additive", n_class=3
    )
    gpt = GPT(config).eval()
    save_checkpoint(
        gpt, tmp_path, tokenizer_files=None, source={}, generation=None, head=Head(LABELS, pad=0)
    )
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["2"] == "good"
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(IDS), gpt(IDS))

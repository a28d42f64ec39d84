"""GPTConfig -> config.json of gpt2, openai-gpt, llama or gptx, as transformers writes it."""

from __future__ import annotations

from typing import Any

from gptx.artifact.class_head import Head, default_labels
from gptx_models.checkpoints.family import Family
from gptx_models.checkpoints.head_fields import classifier_class, write_head
from gptx_models.gpt.config import GPTConfig


def write_config(
    config: GPTConfig, family: Family, tokens: dict[str, Any], head: Head | None = None
) -> dict[str, Any]:
    """The fields of config.json for a family that computes `config` (see family_of).

    tokens: bos_token_id, eos_token_id and pad_token_id; each may be None. head: the classification
    head. A classifier without one gets transformers' default labels.
    """
    described = write_head(
        head or Head(default_labels(config.n_class), pad=tokens.get("pad_token_id"))
    )
    if family == "gptx":
        return {"model_type": "gptx", **config.to_dict(), **(described if config.n_class else {})}
    writer = {"gpt2": _gpt2, "openai-gpt": _openai_gpt, "llama": _llama}[family]
    common = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
    }
    written = {"model_type": family, **writer(config), **common, **tokens}
    if config.n_class:
        written |= described
        written["architectures"] = [classifier_class(written["architectures"][0])]
    return written


def _gpt2(config: GPTConfig) -> dict[str, Any]:
    hf_name = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}[config.activation]
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_gpt2_shape(config),
        "n_inner": config.n_inner,
        "activation_function": hf_name,
    }


def _openai_gpt(config: GPTConfig) -> dict[str, Any]:
    hf_name = {"gelu_tanh": "gelu", "relu": "relu"}[config.activation]
    return {"architectures": ["OpenAIGPTLMHeadModel"], **_gpt2_shape(config), "afn": hf_name}


def _gpt2_shape(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _llama(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": config.n_ctx,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": config.dropout,
    }

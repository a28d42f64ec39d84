"""The model families that config.json can name, and the one that a GPTConfig is written as.

Knows configurations only, neither files nor weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gptx_models.gpt.config import GPTConfig

Family = Literal["gpt2", "openai-gpt", "llama", "gptx"]


def family_of(config: GPTConfig) -> Family:
    """The Hugging Face family that computes exactly this configuration, else "gptx"."""
    rules: dict[Family, Callable[[GPTConfig], bool]] = {
        "gpt2": _is_gpt2,
        "openai-gpt": _is_openai_gpt,
        "llama": _is_llama,
    }
    for family, fits in rules.items():
        if fits(config):
            return family
    return "gptx"


def _is_gpt2(config: GPTConfig) -> bool:
    return _has_gpt2_blocks(config) and config.norm_position == "pre"


def _is_openai_gpt(config: GPTConfig) -> bool:
    return (
        _has_gpt2_blocks(config)
        and config.norm_position == "post"
        and config.activation != "gelu"
        and config.n_inner == 4 * config.n_embd
    )


def _is_llama(config: GPTConfig) -> bool:
    return (
        _has_plain_attention(config)
        and config.position == "rope"
        and config.norm == "rmsnorm"
        and config.norm_position == "pre"
        and config.activation == "swiglu"
    )


def _has_gpt2_blocks(config: GPTConfig) -> bool:
    """True if the blocks are those of GPT-1 or GPT-2; the place of the norm is not checked."""
    return (
        _has_plain_attention(config)
        and config.position == "learned"
        and config.norm == "layernorm"
        and config.n_kv_head == config.n_head
        and config.head_dim * config.n_head == config.n_embd
        and config.activation != "swiglu"
    )


def _has_plain_attention(config: GPTConfig) -> bool:
    """True if all layers use dot-product attention without a window, and the head has no bias."""
    layers = range(config.n_layer)
    return not config.head_bias and all(
        config.attention_of(layer) == "dot" and config.window_of(layer) is None for layer in layers
    )

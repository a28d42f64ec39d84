"""The three kinds of attention, rotary positions and the causal mask, as functions on tensors.

Shapes: B rows, S new tokens, T tokens in all, H query heads, G key-value heads, D head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptx_models.gpt.config import AttentionKind, GPTConfig

# Queries per chunk. All S queries at once would take S x T x D values per head.
ADDITIVE_CHUNK = 32


def rope_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021): two tables (n_ctx, head_dim / 2)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (half / config.head_dim)
    frequencies = _scaled(frequencies, config.rope_scaling or {})
    angles = torch.outer(torch.arange(config.n_ctx, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def _scaled(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """The frequencies after rope_scaling of type linear or llama3.

    Computed as in transformers' modeling_rope_utils.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    factor = scaling["factor"]
    if kind == "linear":
        return frequencies / factor
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    old_context = scaling["original_max_position_embeddings"]
    turns = old_context * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequencies / factor + blend * frequencies


def sinusoidal_table(config: GPTConfig) -> Tensor:
    """The fixed positions of Vaswani et al. 2017: (n_ctx, n_embd).

    Sines stand in the even columns, cosines in the odd ones.
    """
    even = torch.arange(0, config.n_embd, 2, dtype=torch.float32)
    angles = torch.outer(
        torch.arange(config.n_ctx, dtype=torch.float32), 10000.0 ** (-even / config.n_embd)
    )
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return table[:, : config.n_embd].contiguous()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (B, H, S, D), its halves paired as in Llama.

    cos and sin are (B, 1, S, D / 2).
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(attention_mask: Tensor, n_new: int, window: int | None) -> Tensor:
    """The causal mask: bool (B, 1, S, T), True where the query sees the key.

    attention_mask: (B, T), 1 for tokens and 0 for padding; its last n_new (S) columns are the new
    tokens. window: the most tokens that a query sees, itself included. Padding does not count, so
    it may stand anywhere.

    A padded query sees itself, so that its row stays a number: a NaN there would reach every other
    row through its value vector.
    """
    total = attention_mask.shape[1]
    key = torch.arange(total, device=attention_mask.device)
    query = torch.arange(n_new, device=attention_mask.device) + (total - n_new)
    seen = (key[None, :] <= query[:, None]) & (attention_mask[:, None, :] != 0)  # (B, S, T)
    if window is not None:
        place = attention_mask.cumsum(1)  # (B, T)
        seen = seen & (place.index_select(1, query)[:, :, None] - place[:, None, :] < window)
    return (seen | (key[None, :] == query[:, None])).unsqueeze(1)


def weigh(
    kind: AttentionKind,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    score: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of q (B, H, S, D) over k and v (B, G, T, D) -> (B, H, S, D).

    mask: bool (B or 1, 1, S, T), or None for the causal mask of S = T tokens.
    score: the layer's learned parameter. Scales (H,) for cosine, vectors (H, D) for additive, None
    for dot.
    k: must be `normalized` for cosine, because the cache holds normalized keys.
    """
    if kind == "additive":
        assert score is not None and mask is not None
        return _additive(q, k, v, mask, score)
    scale = None  # 1 / sqrt(D)
    if kind == "cosine":
        assert score is not None
        q = normalized(q) * score[:, None, None]
        scale = 1.0
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return _in_matrices(q, k, v, mask, scale or 1 / math.sqrt(q.shape[-1]), dropout)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _in_matrices(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """softmax(scale q k^T) v with whole (S, T) matrices.

    Under autocast on a CPU this is up to ten times as fast as PyTorch's fused kernel, forward and
    backward (benchmarks/training.py).
    """
    n_head, dtype = q.shape[1], torch.get_autocast_dtype("cpu")
    if mask is None:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -math.inf)
    bias = bias.expand(q.shape[0], n_head, -1, -1).flatten(0, 1)
    q, k, v = (
        x.to(dtype).repeat_interleave(n_head // x.shape[1], dim=1)
        if x.shape[1] != n_head
        else x.to(dtype)
        for x in (q, k, v)
    )
    scores = torch.baddbmm(
        bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale
    )  # (B H, S, T)
    weights = F.dropout(scores.softmax(-1, dtype=dtype), dropout)
    return (weights @ v.flatten(0, 1)).unflatten(0, (-1, n_head))


def normalized(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; 1e-12 keeps a zero vector from a division by zero."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12)


def _additive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, score: Tensor) -> Tensor:
    """softmax(score . tanh(q + k)) v (Bahdanau et al. 2015), in chunks of queries."""
    heads_per_key = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(heads_per_key, dim=1) if heads_per_key > 1 else k
    v = v.repeat_interleave(heads_per_key, dim=1) if heads_per_key > 1 else v
    # The runtime divides a prompt itself: prefill_chunk in gptx.json.
    if torch.compiler.is_exporting():
        return additive_rows(q, k, v, mask, score)
    size = ADDITIVE_CHUNK
    rows = [
        additive_rows(q[:, :, i : i + size], k, v, mask[:, :, i : i + size], score)
        for i in range(0, q.shape[2], size)
    ]
    return torch.cat(rows, dim=2)


def additive_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, score: Tensor) -> Tensor:
    """Additive attention of all queries at once; k and v have as many heads as q."""
    sums = torch.tanh(q.unsqueeze(3) + k.unsqueeze(2))  # (B, H, S, T, D)
    logits = torch.matmul(sums, score[:, None, :, None]).squeeze(-1)  # (B, H, S, T)
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1) @ v

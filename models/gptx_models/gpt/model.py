"""The GPT: token ids in, logits out. One module for every configuration in GPTConfig.

Knows no tokenizers, no files and no ONNX. Each layer is given a function, `Attend`, for the work
between its projections: positions, cache and attention. Training and the reference use `Cached`
below; export passes its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptx_models.gpt.attention import (
    causal_mask,
    normalized,
    rope_tables,
    rotate,
    sinusoidal_table,
    weigh,
)
from gptx_models.gpt.config import AttentionKind, GPTConfig

Attend = Callable[["Attention", Tensor], Tensor]  # (layer, packed q|k|v) -> (B, S, H * D)


class Attention(nn.Module):
    """The projections of one attention layer; `attend` does the work between them."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.kind: AttentionKind = config.attention_of(layer)
        self.window = config.window_of(layer)
        width = config.n_head * config.head_dim
        packed = width + 2 * config.n_kv_head * config.head_dim
        self.qkv = nn.Linear(config.n_embd, packed, bias=config.attn_bias)
        self.out = nn.Linear(width, config.n_embd, bias=config.attn_bias)
        self.score: nn.Parameter | None = None
        if self.kind == "cosine":  # a temperature per head, as in QKNorm (Henry et al. 2020)
            self.score = nn.Parameter(
                torch.full((config.n_head,), math.log2(config.n_ctx**2 - config.n_ctx + 1))
            )
        if self.kind == "additive":
            self.score = nn.Parameter(
                torch.randn(config.n_head, config.head_dim) / math.sqrt(config.head_dim)
            )

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        return self.out(attend(self, self.qkv(x)))

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Packed (B, S, (H + 2G) * D) -> q (B, H, S, D), k and v (B, G, S, D)."""
        config = self.config
        heads = qkv.unflatten(
            -1, (config.n_head + 2 * config.n_kv_head, config.head_dim)
        ).transpose(1, 2)
        q, k, v = heads.split((config.n_head, config.n_kv_head, config.n_kv_head), dim=1)
        return q, k, v


class MLP(nn.Module):
    """The feed-forward of a block: (B, S, n_embd) -> (B, S, n_embd)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        # swiglu: gate | up in one projection (Shazeer 2020)
        gates = 2 if config.activation == "swiglu" else 1
        self.up = nn.Linear(config.n_embd, gates * config.n_inner, bias=config.mlp_bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "relu":
            x = F.relu(x)
        elif self.activation == "swiglu":
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(x)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over n_embd values."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """Attention and feed-forward, each with a norm and a residual."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attn, self.mlp = Attention(config, layer), MLP(config)
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        if self.pre_norm:  # GPT-2, GPT-3, Llama
            x = x + self.drop(self.attn(self.norm1(x), attend))
            return x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop(self.attn(x, attend)))  # GPT-1
        return self.norm2(x + self.drop(self.mlp(x)))


class GPT(nn.Module):
    """A GPT of the given configuration; `model(input_ids)` -> logits (B, S, vocab_size)."""

    positions: Tensor  # buffers, where the configuration has them
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        elif config.position == "sinusoidal":
            self.register_buffer("positions", sinusoidal_table(config), persistent=False)
        elif config.position == "rope":
            cos, sin = rope_tables(config)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = Norm(config) if config.norm_position == "pre" else nn.Identity()
        outputs = config.n_class or config.vocab_size
        self.head = nn.Linear(config.n_embd, outputs, bias=config.head_bias and not config.n_class)
        if config.head_is_embedding:
            self.head.weight = self.wte.weight
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        """GPT-2's initialization: weights from a normal distribution with deviation 0.02.

        The projections back into the residual stream have 0.02 / sqrt(2 n_layer).
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for linear in (module.attn.out, module.mlp.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    @property
    def layers(self) -> list[Block]:
        """The blocks as a list of Block: to a type checker, nn.ModuleList holds plain modules."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the model computes; its matrices may be stored in another type."""
        return next(module.weight.dtype for module in self.modules() if isinstance(module, Norm))

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """The logits: input_ids (B, S) int64 -> (B, S, vocab_size).

        With a classification head: (B, S, n_class). position_ids: (B, S); None stands for 0, 1,
        2 ... attend: None stands for causal attention without a cache.
        """
        return self.head(self.hidden(input_ids, position_ids, attend))

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """The input of the head: (B, S, n_embd)."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(
                input_ids.shape
            )
        attend = attend or Cached(self, position_ids)
        x = self.drop(self.embed(input_ids, position_ids))
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The input of the first block: (B, S, n_embd).

        It is the token embeddings, plus the positions if they are learned or sinusoidal.
        """
        x = self.wte(input_ids)
        if self.config.position == "learned":
            x = x + self.wpe(position_ids)
        elif self.config.position == "sinusoidal":
            x = x + F.embedding(position_ids, self.positions)
        return x


Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, G, P, D)


class Cached:
    """An `Attend` with a KV cache: it reads `past` and fills `present`.

    `present` holds the keys and values of the P past tokens and the S new ones.

    attention_mask: (B, P + S), 1 for tokens and 0 for padding; None: no padding anywhere.
    """

    def __init__(
        self,
        model: GPT,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> None:
        self.position_ids, self.attention_mask, self.past = position_ids, attention_mask, past
        self.present: Past = []
        self.masks: dict[int | None, Tensor] = {}
        self.rope = None
        if model.config.position == "rope":
            tables = (model.rope_cos, model.rope_sin)
            # cos and sin, each (B, 1, S, D / 2)
            self.rope = [F.embedding(position_ids, table).unsqueeze(1) for table in tables]

    def __call__(self, layer: Attention, qkv: Tensor) -> Tensor:
        q, k, v = layer.split(qkv)
        if self.rope:
            q, k = rotate(q, *self.rope), rotate(k, *self.rope)
        if layer.kind == "cosine":
            k = normalized(k)
        if self.past is not None:
            old_k, old_v = self.past[layer.layer]
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        self.present.append((k, v))
        y = weigh(
            layer.kind,
            q,
            k,
            v,
            self.mask(layer, q, k),
            layer.score,
            layer.config.dropout if layer.training else 0.0,
        )
        return y.transpose(1, 2).flatten(2)  # (B, S, H * D)

    def mask(self, layer: Attention, q: Tensor, k: Tensor) -> Tensor | None:
        """The mask of a layer: (B or 1, 1, S, T), shared by layers with the same window.

        None stands for the plain causal mask.
        """
        simple = self.attention_mask is None and self.past is None and layer.window is None
        if simple and layer.kind != "additive":
            return None  # SDPA masks by itself (is_causal)
        if layer.window not in self.masks:
            given = self.attention_mask
            if given is None:
                given = torch.ones(1, k.shape[2], dtype=torch.int64, device=k.device)
            self.masks[layer.window] = causal_mask(given, q.shape[2], layer.window)
        return self.masks[layer.window]

"""Rotate the residual stream by an orthogonal matrix Q: the same function, but it rounds better.

A few channels of a GPT's activations are hundreds of times larger than the others, and a scale per
row must cover them. A random rotation spreads them over all channels (QuaRot, Ashkboos et al. 2024,
arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406). It is folded into the weights:

- Gain and bias of a norm move into the linear layer behind it, whose inputs are multiplied by Q.
- Layers that write to the residual stream are multiplied by Q transposed.
- Values and the columns of the output projection are rotated head by head.
- LayerNorm becomes RMSNorm, after the mean is removed from everything that is written to the stream
  (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024).
- The embedding is rotated as well, so that a tied head can stay tied. This leaves one small
  product at run time, before the head: with the gain of the last norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Attention, Norm

SEED = 7


class Turned(nn.Module):
    """A norm whose output is multiplied by a matrix: norm(x) turn^T + bias."""

    def __init__(self, norm: nn.Module, turn: Tensor, bias: Tensor | None):
        super().__init__()
        self.norm = norm
        self.turn = nn.Linear(*turn.shape, bias=bias is not None)
        self.turn.weight = nn.Parameter(turn.contiguous(), requires_grad=False)
        if bias is not None:
            self.turn.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(self.norm(x))


class Masked(nn.Module):
    """A module whose output is multiplied by a vector."""

    def __init__(self, inner: nn.Module, mask: Tensor):
        super().__init__()
        self.inner, self.mask = inner, nn.Parameter(mask, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.mask


def why_not_rotated(config: GPTConfig) -> str | None:
    """The reason why a model's residual stream cannot be rotated, or None."""
    if config.norm_position == "post":
        return "a post-norm model normalizes the stream itself, channel by channel"
    return None


@torch.no_grad()
def rotate(gpt: GPT, *, seed: int = SEED) -> None:
    """Rotate `gpt` in place. Its logits stay the same up to fp32 rounding.

    The architecture must allow it (see why_not_rotated).
    """
    q = rotation(gpt.config, seed)
    write = q  # for everything that is added to the stream
    if gpt.config.norm == "layernorm":  # the mean, along q's first column, is never written
        write = q.clone()
        write[:, 0] = 0
    for block in gpt.layers:
        for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.up)):
            _read_through(norm, reader, q)
        for writer in (block.attn.out, block.mlp.down):
            writer.weight.copy_(write.T @ writer.weight.to(q.dtype))
            if writer.bias is not None:
                writer.bias.copy_(writer.bias.to(q.dtype) @ write)
        _turn_values(block.attn, seed)
    if gpt.config.position == "learned":
        gpt.wpe.weight.copy_(gpt.wpe.weight.to(q.dtype) @ write)
    elif gpt.config.position == "sinusoidal":
        gpt.positions.copy_(gpt.positions.to(q.dtype) @ write)
    last = gpt.norm
    assert isinstance(last, Norm)
    turned = (q.T * last.weight.to(q.dtype)) @ q
    bias = None if last.bias is None else (last.bias.to(q.dtype) @ q).float()
    gpt.wte.weight.copy_(gpt.wte.weight.to(q.dtype) @ q)
    if not gpt.config.head_is_embedding:
        gpt.head.weight.copy_(gpt.head.weight.to(q.dtype) @ q)
    if gpt.config.norm == "layernorm":  # a tied head needs the mean in the table
        mask = torch.ones(gpt.config.n_embd)
        mask[0] = 0
        gpt.wte = Masked(gpt.wte, mask)  # type: ignore[assignment]
    _plain(last)
    gpt.norm = Turned(last, turned.float(), bias)  # type: ignore[assignment]


def rotation(config: GPTConfig, seed: int = SEED) -> Tensor:
    """Q of a model, float64: a state x of the residual stream (1, n_embd) is rotated to x Q."""
    q = orthogonal(config.n_embd, seed)
    return along_mean(q) if config.norm == "layernorm" else q


@torch.no_grad()
def unrotated_norm(turned: Turned, config: GPTConfig) -> Norm:
    """The norm that gives the state behind `turned`, not rotated, from an input rotated back.

    It is an RMSNorm, since the stream has no mean. Its gain and bias are read from the matrix that
    `rotate` has made of them.
    """
    q, turn, norm = rotation(config), turned.turn, Norm(config)
    norm.kind = "rmsnorm"
    norm.weight.copy_(((q @ turn.weight.to(q.dtype)) * q).sum(1))  # turn is Q^T diag(gain) Q
    bias = turn.bias
    norm.bias = None if bias is None else nn.Parameter((q @ bias.to(q.dtype)).float())
    return norm


def orthogonal(width: int, seed: int) -> Tensor:
    """A random orthogonal matrix (width, width), float64: Q of the QR of a Gaussian matrix."""
    gaussian = torch.randn(
        width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def along_mean(q: Tensor) -> Tensor:
    """Reflect q (Householder) so that its first column is (1, ..., 1) / sqrt(width)."""
    mean = torch.full((len(q),), len(q) ** -0.5, dtype=q.dtype)
    v = q[:, 0] - mean
    # 1e-30: v is 0 if the column is there already
    return q - 2 * torch.outer(v, v @ q) / v.dot(v).clamp_min(1e-30)


def _read_through(norm: Norm, reader: nn.Linear, q: Tensor) -> None:
    """Fold a norm's gain and bias into the linear layer that reads it, and rotate its inputs."""
    weight = reader.weight.to(q.dtype)
    if norm.bias is not None:
        shift = weight @ norm.bias.to(q.dtype)
        old = 0.0 if reader.bias is None else reader.bias.to(q.dtype)
        reader.bias = nn.Parameter((shift + old).float(), requires_grad=False)
    reader.weight.copy_((weight * norm.weight.to(q.dtype)) @ q)
    _plain(norm)


def _plain(norm: Norm) -> None:
    """Make `norm` an RMSNorm without a gain.

    This also replaces a LayerNorm: without a mean, the variance is the mean of squares.
    """
    norm.kind = "rmsnorm"
    norm.weight.fill_(1.0)
    norm.bias = None


def _turn_values(attn: Attention, seed: int) -> None:
    """Rotate each value head, and undo it in the columns of `out`: attention only mixes rows."""
    config = attn.config
    size, groups = config.head_dim, config.n_kv_head
    turn = orthogonal(size, seed + 1 + attn.layer)
    values = slice((config.n_head + groups) * size, None)
    rows = attn.qkv.weight[values].to(turn.dtype)  # (G * D, n_embd)
    attn.qkv.weight[values] = (turn.T @ rows.view(groups, size, -1)).flatten(0, 1).float()
    if attn.qkv.bias is not None:
        bias = attn.qkv.bias[values].to(turn.dtype).view(groups, size)
        attn.qkv.bias[values] = (bias @ turn).flatten().float()
    out = attn.out.weight.to(turn.dtype).view(-1, config.n_head, size)
    attn.out.weight.copy_((out @ turn).flatten(1))

"""Turn the residual stream by an orthogonal matrix, so that no channel of it stands out: the same function, rounded better.

A GPT's activations have a few channels hundreds of times the others, and one scale for a row must cover them. Multiplied by
a random orthogonal Q they spread over all channels (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et al.
2024, arXiv 2405.16406). All of it is folded into the weights: norm gains and biases go into the linears behind them, whose
inputs take Q; what writes into the stream takes Q transposed; v and o are turned head by head. LayerNorm becomes RMSNorm
once the writers have the mean taken out (SliceGPT, arXiv 2401.15024). The embedding is turned as well, and stays one table
with a tied head: what remains at run time is one small product, of the last norm's gain, before the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Attention, Norm

SEED = 7


class Turned(nn.Module):
    """A norm whose output is multiplied by a matrix: `norm(x) turn^T + bias`."""

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
    """Why a model's stream cannot be turned; None where it can."""
    if config.norm_position == "post":
        return "a post-norm model normalizes the stream itself, channel by channel"
    return None


@torch.no_grad()
def rotate(gpt: GPT, *, seed: int = SEED) -> None:
    """Rewrite `gpt` in place; its logits stay what they were, to the rounding of fp32. See why_not_rotated."""
    q = orthogonal(gpt.config.n_embd, seed)
    write = q  # turns what is added to the stream
    if (
        gpt.config.norm == "layernorm"
    ):  # the stream's mean is its part along the first column of q: never written
        q = along_mean(q)
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
    if gpt.config.norm == "layernorm":  # the head reads the table's mean, the stream must not
        mask = torch.ones(gpt.config.n_embd)
        mask[0] = 0
        gpt.wte = Masked(gpt.wte, mask)  # type: ignore[assignment]
    _plain(last)
    gpt.norm = Turned(last, turned.float(), bias)  # type: ignore[assignment]


def orthogonal(width: int, seed: int) -> Tensor:
    """A random orthogonal matrix (width, width), float64: the Q of a Gaussian matrix, the same for the same seed."""
    gaussian = torch.randn(
        width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def along_mean(q: Tensor) -> Tensor:
    """Another such matrix, whose first column is (1, ..., 1) / sqrt(width), by a Householder reflection."""
    mean = torch.full((len(q),), len(q) ** -0.5, dtype=q.dtype)
    v = q[:, 0] - mean
    return q - 2 * torch.outer(v, v @ q) / v.dot(v).clamp_min(
        1e-30
    )  # nothing to turn where it is there already


def _read_through(norm: Norm, reader: nn.Linear, q: Tensor) -> None:
    """Fold a norm's gain and bias into the linear that reads it, and turn what that reads."""
    weight = reader.weight.to(q.dtype)
    if norm.bias is not None:
        shift = weight @ norm.bias.to(q.dtype)
        old = 0.0 if reader.bias is None else reader.bias.to(q.dtype)
        reader.bias = nn.Parameter((shift + old).float(), requires_grad=False)
    reader.weight.copy_((weight * norm.weight.to(q.dtype)) @ q)
    _plain(norm)


def _plain(norm: Norm) -> None:
    """RMSNorm without a gain. The mean is gone from the stream, so a LayerNorm's variance is the mean of squares."""
    norm.kind = "rmsnorm"
    norm.weight.fill_(1.0)
    norm.bias = None


def _turn_values(attn: Attention, seed: int) -> None:
    """Turn each value head, and turn it back in the columns of `out` that read it: attention only mixes rows of v."""
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

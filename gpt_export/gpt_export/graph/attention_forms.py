"""The forms of the KV cache, and the attention that a graph has in each of them.

shared   com.microsoft GroupQueryAttention; past and present are one full-length buffer
scatter  TensorScatter into such a buffer, then Attention (opset 24) or additive scores; gptx only
growing  past and new keys are concatenated (gptx_models.gpt.model.Cached); standard operators only

Each form is an `Attend` (see gptx_models.gpt.model): it maps the q|k|v projection (B, S, (H + 2G) *
D) to the input of the output projection (B, S, H * D), and collects the new cache in `.present`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gptx.errors import UsageError
from gptx.progress import note
from gptx_models.gpt.attention import additive_rows, normalized, rotate
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT, Attention, Past

CacheForm = Literal["shared", "growing", "scatter"]
# cuda: the graph that fp16 artifacts run on CUDA; its cache has the form `shared`
GraphForm = CacheForm | Literal["cuda"]
OPSET: dict[GraphForm, int] = {"shared": 23, "growing": 23, "scatter": 24, "cuda": 23}
# Tokens per run in prefill. GroupQueryAttention computes the scores of all keys and masks them
# afterwards, so short chunks waste less: 256 is 4% faster than 512.
PREFILL_CHUNK = 256


def why_not(config: GPTConfig, form: CacheForm) -> str | None:
    """Why a configuration cannot have a cache form, or None. Only `shared` has limits."""
    if form != "shared":
        return None
    if any(config.attention_of(i) == "additive" for i in range(config.n_layer)):
        return (
            "GroupQueryAttention has no additive attention; scatter (for gptx alone) and growing do"
        )
    if config.head_dim % 8:
        return (
            f"GroupQueryAttention needs a head_dim that 8 divides, not {config.head_dim};"
            " growing and scatter do not"
        )
    return None


def default_form(config: GPTConfig) -> tuple[CacheForm, str | None]:
    """The default form of a configuration, and the reason if it is not `shared`.

    A model with additive attention runs only in gptx (other loaders do not know its config.json),
    so it gets `scatter`, the faster form. A head_dim that `shared` cannot take gets `growing`,
    which other loaders can run.
    """
    refusal = why_not(config, "shared")
    if refusal is None:
        return "shared", None
    form: CacheForm = "growing" if "head_dim" in refusal else "scatter"
    return form, f"cache form: {form}, since {refusal}"


def choose_form(config: GPTConfig, asked: CacheForm | None) -> CacheForm:
    """The form `asked` for, or the default. Raises UsageError if the model cannot have `asked`."""
    form, reason = default_form(config)
    if asked is None:
        if reason:
            note(reason)
        return form
    refusal = why_not(config, asked)
    if refusal:
        raise UsageError(f"--cache {asked}: {refusal}")
    return asked


class Shared:
    """GroupQueryAttention. Its kernel also applies rotary embeddings if head_dim % 16 == 0."""

    def __init__(self, gpt: GPT, position_ids: Tensor, attention_mask: Tensor, past: Past):
        self.gpt, self.past, self.width = gpt, past, attention_mask.shape[1]
        self.present: Past = []
        self.last = self.last_token(position_ids, attention_mask)
        self.total = _length(attention_mask).to(torch.int32)
        self.bias = self.bias_of(position_ids, attention_mask, past[0][0].dtype)
        self.rope_inside = gpt.config.position == "rope" and gpt.config.head_dim % 16 == 0
        self.rope = None
        if gpt.config.position == "rope" and not self.rope_inside:
            self.rope = rope_at(gpt, position_ids)

    def last_token(self, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Index of each row's last token, int32 (B,): where the mask has its last 1.

        The mask's sum would be wrong for rows that are padded on the left.
        """
        rows = (attention_mask.shape[0],)
        return _op("ArgMax", [attention_mask], rows, axis=1, keepdims=0, select_last_index=1).to(
            torch.int32
        )

    def bias_of(
        self, position_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """Attention bias (B, 1, S, total length): 0 for tokens, very negative for padding."""
        # finite, so that the softmax of a row of padding is not NaN
        hidden = -3e4 if dtype == torch.float16 else -1e30
        bias = torch.where(
            attention_mask.bool(), torch.tensor(0, dtype=dtype), torch.tensor(hidden, dtype=dtype)
        )
        rows, width = bias.shape
        bias = _op("Unsqueeze", [bias, torch.tensor([1, 2])], (rows, 1, 1, width), dtype)
        shape = torch.cat([torch.tensor([1, 1]), _length(position_ids), torch.tensor([1])])
        return _op("Expand", [bias, shape], (rows, 1, position_ids.shape[1], width), dtype)

    def __call__(self, layer: Attention, qkv: Tensor) -> Tensor:
        config = layer.config
        past_k, past_v = self.past[layer.layer]
        query, key, value = qkv, None, None
        attributes: dict[str, Any] = {"num_heads": config.n_head, "kv_num_heads": config.n_kv_head}
        if self.rope or layer.kind == "cosine":
            query, key, value = (
                heads.transpose(1, 2).flatten(2) for heads in split_heads(layer, qkv, self.rope)
            )
        if layer.kind == "cosine":
            attributes["scale"] = 1.0
        if layer.window is not None:
            attributes["local_window_size"] = layer.window
        attributes["do_rotary"] = int(self.rope_inside)
        tables = [self.gpt.rope_cos, self.gpt.rope_sin] if self.rope_inside else [None, None]
        rows, length = qkv.shape[:2]
        cache_shape = (rows, config.n_kv_head, self.width, config.head_dim)
        bias = [] if self.bias is None else [None, self.bias]
        y, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [query, key, value, past_k, past_v, self.last, self.total, *tables, *bias],
            attributes,
            dtypes=[qkv.dtype] * 3,
            shapes=[(rows, length, config.n_head * config.head_dim), cache_shape, cache_shape],
            version=1,
        )
        self.present.append((present[0], present[1]))
        return y


def _length(rows: Tensor) -> Tensor:
    """The length n of `rows` (B, n), as an int64 tensor (1,)."""
    return _op("Shape", [rows], (1,), start=1, end=2)


def _op(
    kind: str,
    inputs: list[Tensor],
    shape: tuple[Any, ...],
    dtype: torch.dtype = torch.int64,
    **attributes: Any,
) -> Tensor:
    """A single ONNX operator where the exporter would write several for PyTorch's operation.

    Each node costs time in a small model: the nodes before the first layer took a fifth of the
    default model's decode step.
    """
    return torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=dtype, shape=shape, version=23)


class SharedOnCuda(Shared):
    """Shared without an attention bias, for rows that are padded on the right only.

    With a bias, CUDA's kernel does not use flash attention and writes all scores to memory. Of
    attention_mask only the length is read, so that its content can stay the same in each decode
    step.
    """

    def last_token(self, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = torch.tensor(-1)
        return _op("Gather", [position_ids, last], (position_ids.shape[0],), axis=1).to(torch.int32)

    def bias_of(self, position_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype) -> None:
        return None


class Scatter:
    """Write new keys and values to the buffer from position_ids[:, 0] on, then attend.

    A query attends to keys up to its own position, which also hides unused buffer slots.
    """

    def __init__(self, gpt: GPT, position_ids: Tensor, attention_mask: Tensor, past: Past):
        self.gpt, self.past, self.position_ids, self.attention_mask = (
            gpt,
            past,
            position_ids,
            attention_mask,
        )
        self.present: Past = []
        self.rope = rope_at(gpt, position_ids) if gpt.config.position == "rope" else None
        # index_select, because the exporter makes [:, 0] depend on the number of rows
        self.start = position_ids.index_select(1, torch.zeros(1, dtype=torch.int64)).squeeze(1)

    def __call__(self, layer: Attention, qkv: Tensor) -> Tensor:
        q, k, v = split_heads(layer, qkv, self.rope)
        k, v = (self.write(old, new) for old, new in zip(self.past[layer.layer], (k, v)))
        self.present.append((k, v))
        if layer.kind == "additive":
            assert layer.score is not None
            # only the filled part of the buffer: each score costs head_dim tanh's
            total = self.attention_mask.shape[1]
            k, v = k[:, :, :total], v[:, :, :total]
            heads_per_key = q.shape[1] // k.shape[1]
            if heads_per_key > 1:
                k, v = (
                    k.repeat_interleave(heads_per_key, dim=1),
                    v.repeat_interleave(heads_per_key, dim=1),
                )
            y = additive_rows(q, k, v, self.seen(total, layer.window), layer.score)
        else:
            scale = 1.0 if layer.kind == "cosine" else layer.config.head_dim**-0.5
            y = torch.onnx.ops.symbolic(
                "Attention",
                [q, k, v, self.seen(k.shape[2], layer.window)],
                {"scale": scale},
                dtype=q.dtype,
                shape=q.shape,
                version=24,
            )
        return y.transpose(1, 2).flatten(2)

    def write(self, buffer: Tensor, new: Tensor) -> Tensor:
        inputs = [buffer, new, self.start]
        attributes = {"axis": 2, "mode": "linear"}
        return torch.onnx.ops.symbolic(
            "TensorScatter", inputs, attributes, dtype=buffer.dtype, shape=buffer.shape, version=24
        )

    def seen(self, length: int, window: int | None) -> Tensor:
        """Mask bool (B, 1, S, length): True where a query may attend to a key."""
        key = torch.arange(length)
        query = self.position_ids[:, :, None]
        seen = key[None, None, :] <= query
        if window is not None:
            seen = seen & (query - key[None, None, :] < window)
        return seen.unsqueeze(1)


def split_heads(
    layer: Attention, qkv: Tensor, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Split packed q|k|v into q (B, H, S, D), k and v (B, G, S, D), ready for the scores.

    q and k get the rotary embedding. In a cosine layer they are also normalized, and q is
    multiplied by the learned temperature.
    """
    q, k, v = layer.split(qkv)
    if rope:
        q, k = rotate(q, *rope), rotate(k, *rope)
    if layer.kind == "cosine":
        assert layer.score is not None
        q, k = normalized(q) * layer.score[:, None, None], normalized(k)
    return q, k, v


def rope_at(gpt: GPT, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the rotary tables at these positions: cos and sin, each (B, 1, S, head_dim / 2)."""
    cos, sin = (
        F.embedding(position_ids, table).unsqueeze(1) for table in (gpt.rope_cos, gpt.rope_sin)
    )
    return cos, sin

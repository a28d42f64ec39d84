"""Where each parameter of a GPT stands in a file: under which names, packed or split, transposed or not.

One table a family serves both directions, reading and writing. Knows neither files nor tensors, only names and shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gptx_models.checkpoints.hf_config import Family
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT


@dataclass(frozen=True)
class Layout:
    """Our module -> the modules that hold it elsewhere; `{i}` is the layer. Several names: their rows together."""

    names: dict[str, tuple[str, ...]]
    transposed: frozenset[str] = frozenset()  # modules whose weight is stored (in, out)
    prefix: str = ""  # some files leave it out
    ignored: str = r"(?!)"  # tensors that carry nothing: buffers of old versions

    def untransposed(self) -> Layout:
        return replace(self, transposed=frozenset())


_LINEARS = frozenset(("attn.qkv", "attn.out", "mlp.up", "mlp.down"))
_GPT2_BLOCK = {
    "norm1": ("h.{i}.ln_1",),
    "attn.qkv": ("h.{i}.attn.c_attn",),
    "attn.out": ("h.{i}.attn.c_proj",),
    "norm2": ("h.{i}.ln_2",),
    "mlp.up": ("h.{i}.mlp.c_fc",),
    "mlp.down": ("h.{i}.mlp.c_proj",),
    "head": ("lm_head",),
}


def _prefixed(names: dict[str, tuple[str, ...]], prefix: str) -> dict[str, tuple[str, ...]]:
    return {
        ours: tuple(n if n == "lm_head" else prefix + n for n in theirs)
        for ours, theirs in names.items()
    }


LAYOUTS: dict[Family, Layout] = {
    "gpt2": Layout(
        _prefixed(
            {"wte": ("wte",), "wpe": ("wpe",), **_GPT2_BLOCK, "norm": ("ln_f",)}, "transformer."
        ),
        transposed=_LINEARS,  # Conv1D
        prefix="transformer.",
        ignored=r"h\.\d+\.attn\.(masked_)?bias$",
    ),
    "openai-gpt": Layout(
        _prefixed(
            {"wte": ("tokens_embed",), "wpe": ("positions_embed",), **_GPT2_BLOCK}, "transformer."
        ),
        transposed=_LINEARS,
        prefix="transformer.",
        ignored=r"h\.\d+\.attn\.bias$|position_ids$",
    ),
    "llama": Layout(
        _prefixed(
            {
                "wte": ("embed_tokens",),
                "norm1": ("layers.{i}.input_layernorm",),
                "attn.qkv": tuple(f"layers.{{i}}.self_attn.{p}_proj" for p in "qkv"),
                "attn.out": ("layers.{i}.self_attn.o_proj",),
                "norm2": ("layers.{i}.post_attention_layernorm",),
                "mlp.up": ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"),
                "mlp.down": ("layers.{i}.mlp.down_proj",),
                "norm": ("norm",),
                "head": ("lm_head",),
            },
            "model.",
        ),
        prefix="model.",
        ignored=r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    ),
    "gptx": Layout({}),
}


@dataclass(frozen=True)
class Place:
    """Where one parameter stands: its pieces' names with the rows of each, and whether they are stored transposed."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool

    def without(self, prefix: str) -> Place:
        return replace(self, names=tuple(name.removeprefix(prefix) for name in self.names))

    def shapes(self, ours: torch.Size) -> list[tuple[int, ...]]:
        pieces = [(rows, *ours[1:]) for rows in self.rows]
        return [tuple(reversed(piece)) if self.transposed else piece for piece in pieces]


def place_of(parameter: str, shape: torch.Size, config: GPTConfig, layout: Layout) -> Place:
    """Where `parameter` (a name of GPT.state_dict()) stands in a layout."""
    if not layout.names:
        return Place((parameter,), (shape[0],), False)
    module, kind = parameter.rsplit(".", 1)  # kind: weight or bias
    layer = re.match(r"blocks\.(\d+)\.", module)
    module = module[layer.end() :] if layer else module
    ours = ("score",) if module == "head" and config.n_class else layout.names[module]
    names = tuple(f"{n.format(i=layer[1] if layer else '')}.{kind}" for n in ours)
    rows: tuple[int, ...] = (shape[0],)
    if len(names) == 3:  # q | k | v
        rows = (config.n_head * config.head_dim,) + (config.n_kv_head * config.head_dim,) * 2
    elif len(names) == 2:  # gate | up
        rows = (config.n_inner, config.n_inner)
    return Place(names, rows, kind == "weight" and module in layout.transposed)


def written_names(model: GPT, layout: Layout, written: Layout) -> dict[str, str]:
    """For each tensor of a file in `layout`: what it is called in a file in `written` (where both split it alike)."""
    names: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        found = place_of(name, parameter.shape, model.config, layout).names
        target = place_of(name, parameter.shape, model.config, written).names
        pairs = list(zip(found, target if len(target) == len(found) else target[:1] * len(found)))
        # the base model alone is written without the prefix
        names |= dict(pairs) | {
            piece.removeprefix(layout.prefix): theirs for piece, theirs in pairs
        }
    return names


def to_halves(rows: Tensor, n_head: int) -> Tensor:
    """Rows of Q or K from interleaved rotary pairs (Meta, llama.cpp) to halves: in each head 0 2 4 ... 1 3 5 ..."""
    return rows.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)

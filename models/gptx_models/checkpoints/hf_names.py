"""Where each parameter of a GPT is stored in a file.

A tensor in the file may have another name, hold only some of the rows, and be transposed. One table
for each family serves reading and writing. Knows names and shapes only, no files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gptx_models.checkpoints.family import Family
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT


@dataclass(frozen=True)
class Layout:
    """How the files of one family store our modules.

    names: our module -> the modules of the file, with `{i}` for the layer. If there are several,
    our matrix is their matrices, concatenated along the rows. transposed: our modules whose weight
    is stored as (in, out). prefix: the start of the names in the base model; some files leave it
    out. ignored: a regular expression for tensors that are no weights, such as the mask buffers of
    old versions.
    """

    names: dict[str, tuple[str, ...]]
    transposed: frozenset[str] = frozenset()
    prefix: str = ""
    ignored: str = r"(?!)"

    def untransposed(self) -> Layout:
        """The same names, with every weight stored as (out, in)."""
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


def _prefixed(modules: dict[str, tuple[str, ...]], prefix: str) -> dict[str, tuple[str, ...]]:
    """The modules' names with the base model's prefix, which the head does not have."""
    return {
        module: tuple(name if name == "lm_head" else prefix + name for name in names)
        for module, names in modules.items()
    }


LAYOUTS: dict[Family, Layout] = {
    "gpt2": Layout(
        _prefixed(
            {"wte": ("wte",), "wpe": ("wpe",), **_GPT2_BLOCK, "norm": ("ln_f",)}, "transformer."
        ),
        transposed=_LINEARS,  # transformers' Conv1D
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
    "gptx": Layout({}),  # our own names
}


@dataclass(frozen=True)
class StoredParameter:
    """Where one parameter of the model is stored: in one tensor, or its rows split over several.

    rows: how many of the parameter's rows each tensor holds. transposed: each tensor is stored as
    (in, out).
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool

    def without_prefix(self, prefix: str) -> StoredParameter:
        """The same place in a file whose names lack the base model's prefix."""
        return replace(self, names=tuple(name.removeprefix(prefix) for name in self.names))

    def shapes(self, parameter: torch.Size) -> list[tuple[int, ...]]:
        """The shape of each stored tensor; `parameter` is the shape of the whole parameter."""
        shapes = [(rows, *parameter[1:]) for rows in self.rows]
        return [tuple(reversed(shape)) if self.transposed else shape for shape in shapes]


def stored_parameter(
    parameter: str, shape: torch.Size, config: GPTConfig, layout: Layout
) -> StoredParameter:
    """Where a file stores `parameter`, which is a name of GPT.state_dict()."""
    if not layout.names:
        return StoredParameter((parameter,), (shape[0],), False)
    module, kind = parameter.rsplit(".", 1)  # kind: weight or bias
    layer = re.match(r"blocks\.(\d+)\.", module)
    module = module[layer.end() :] if layer else module
    stored = ("score",) if module == "head" and config.n_class else layout.names[module]
    names = tuple(f"{name.format(i=layer[1] if layer else '')}.{kind}" for name in stored)
    rows: tuple[int, ...] = (shape[0],)
    if len(names) == 3:  # q | k | v
        rows = (config.n_head * config.head_dim,) + (config.n_kv_head * config.head_dim,) * 2
    elif len(names) == 2:  # gate | up
        rows = (config.n_inner, config.n_inner)
    return StoredParameter(names, rows, kind == "weight" and module in layout.transposed)


def written_names(model: GPT, layout: Layout, written: Layout) -> dict[str, str]:
    """Tensor name in a file of `layout` -> its name in a file of `written`.

    If the two layouts split a parameter into different numbers of tensors, each tensor of `layout`
    gets the first name in `written`. The keys include the names without the base model's prefix.
    """
    names: dict[str, str] = {}
    for parameter, weight in model.named_parameters():
        read = stored_parameter(parameter, weight.shape, model.config, layout).names
        target = stored_parameter(parameter, weight.shape, model.config, written).names
        if len(target) != len(read):
            target = target[:1] * len(read)
        names |= dict(zip(read, target))
        names |= {name.removeprefix(layout.prefix): new for name, new in zip(read, target)}
    return names


def to_halves(rows: Tensor, n_head: int) -> Tensor:
    """Reorder the rows of Q or K in each head: 0 1 2 3 ... becomes 0 2 4 ... 1 3 5 ...

    Meta and llama.cpp store the two rows of a rotary pair next to each other; Hugging Face and gptx
    store the first rows of all pairs, then the second ones. rows: (n_head * head_dim, ...).
    """
    return rows.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)

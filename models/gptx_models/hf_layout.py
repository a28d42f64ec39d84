"""Where each parameter of a GPT stands in a file: under which names, packed or split, transposed or not.

One table a family serves both directions, reading (`build`) and writing (`tensors_of`). Knows no file formats: tensors
come from a `TensorSource`, which knows names and shapes beforehand and reads one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptx.errors import CheckpointError
from gptx_models.attention import rope_tables, sinusoidal_table
from gptx_models.config import GPTConfig
from gptx_models.hf_config import Family
from gptx_models.model import GPT


@dataclass(frozen=True)
class TensorSource:
    """Named tensors of one checkpoint, read one at a time. `where` names it in messages."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    types: dict[str, str] = field(default_factory=dict)  # how each is stored: F32, BF16, ...


@dataclass(frozen=True)
class Layout:
    """Our module -> the modules that hold it elsewhere; `{i}` is the layer. Several names: their rows together."""

    names: dict[str, tuple[str, ...]]
    transposed: frozenset[str] = frozenset()  # modules whose weight is stored (in, out)
    prefix: str = ""  # some files leave it out
    ignored: str = r"(?!)"  # tensors that carry nothing: buffers of old versions

    def untransposed(self) -> Layout:
        return replace(self, transposed=frozenset())


_NUMBERS = re.compile(r"I\d|U\d|BOOL|F[468]_|u?int|float8|bool")  # types that hold a weight only with a scale beside it
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
    return {ours: tuple(n if n == "lm_head" else prefix + n for n in theirs) for ours, theirs in names.items()}


LAYOUTS: dict[Family, Layout] = {
    "gpt2": Layout(
        _prefixed({"wte": ("wte",), "wpe": ("wpe",), **_GPT2_BLOCK, "norm": ("ln_f",)}, "transformer."),
        transposed=_LINEARS,  # Conv1D
        prefix="transformer.",
        ignored=r"h\.\d+\.attn\.(masked_)?bias$",
    ),
    "openai-gpt": Layout(
        _prefixed({"wte": ("tokens_embed",), "wpe": ("positions_embed",), **_GPT2_BLOCK}, "transformer."),
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
        ignored=r"rotary_emb\.inv_freq$",
    ),
    "gptx": Layout({}),
}


@dataclass(frozen=True)
class Place:
    """Where one parameter stands: its pieces' names with the rows of each, and whether they are stored transposed."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool

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
    names = tuple(f"{n.format(i=layer[1] if layer else '')}.{kind}" for n in layout.names[module])
    rows: tuple[int, ...] = (shape[0],)
    if len(names) == 3:  # q | k | v
        rows = (config.n_head * config.head_dim,) + (config.n_kv_head * config.head_dim,) * 2
    elif len(names) == 2:  # gate | up
        rows = (config.n_inner, config.n_inner)
    return Place(names, rows, kind == "weight" and module in layout.transposed)


class _WithoutInitialization(TorchFunctionMode):
    """The weights come from a file; and normal_ on tensors without memory imports 800 modules (1.4 s) first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(config: GPTConfig) -> GPT:
    """A GPT whose parameters have shapes and no memory yet."""
    with torch.device("meta"), _WithoutInitialization():
        model = GPT(config)
    if config.position == "rope":
        model.rope_cos, model.rope_sin = rope_tables(config)
    elif config.position == "sinusoidal":
        model.positions = sinusoidal_table(config)
    return model


def build(config: GPTConfig, layout: Layout, source: TensorSource) -> GPT:
    """The GPT in fp32 and eval mode, its weights read from `source` one by one. Raises CheckpointError."""
    model = empty_model(config)
    bare = bool(source.shapes) and not any(name.startswith(layout.prefix) for name in source.shapes)
    shapes = {name: p.shape for name, p in model.named_parameters()}  # a tied head is in it once, as wte
    places = {name: place_of(name, shape, config, layout) for name, shape in shapes.items()}
    if bare:
        places = {
            name: replace(place, names=tuple(n.removeprefix(layout.prefix) for n in place.names))
            for name, place in places.items()
        }
    check(places, shapes, source, layout, tied=config.tied)
    for name, place in places.items():
        value = torch.empty(shapes[name], dtype=torch.float32)
        for part, piece in zip(value.split(place.rows), place.names):
            tensor = source.read(piece)
            part.copy_(tensor.t() if place.transposed else tensor)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(value))
    if config.tied:
        model.head.weight = model.wte.weight
    return model.eval()


def check(
    places: dict[str, Place], shapes: dict[str, torch.Size], source: TensorSource, layout: Layout, *, tied: bool
) -> None:
    """Raise CheckpointError that names every missing and every unexpected tensor and every wrong shape."""
    expected = {
        piece: piece_shape
        for name, place in places.items()
        for piece, piece_shape in zip(place.names, place.shapes(shapes[name]))
    }
    tied_head = {f"{n}.weight" for n in layout.names.get("head", ("head",))} if tied else set()
    found = {name for name in source.shapes if not re.search(layout.ignored, name)} - tied_head
    missing = [name for name in expected if name not in source.shapes]
    unexpected = sorted(found - set(expected))
    wrong = [
        f"{name} is {list(source.shapes[name])} where the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in source.shapes and tuple(source.shapes[name]) != shape
    ]
    problems = []
    quantized = [f"{name} is {source.types[name]}" for name in expected if _NUMBERS.match(source.types.get(name, ""))]
    if quantized:
        problems.append(f"expected weights of 16, 32 or 64 bits in floating point: {', '.join(quantized)}")
    if missing:
        problems.append(f"missing tensors: {', '.join(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors: {', '.join(unexpected)}")
    if wrong:
        problems.append(f"wrong shapes: {', '.join(wrong)}")
    if problems:
        raise CheckpointError(f"{source.where}: the weights do not fit the configuration: {'; '.join(problems)}")


def written_names(config: GPTConfig, layout: Layout, written: Layout) -> dict[str, str]:
    """For each tensor of a file in `layout`: what it is called in a file in `written` (where both split it alike)."""
    names: dict[str, str] = {}
    for name, parameter in empty_model(config).named_parameters():
        found = place_of(name, parameter.shape, config, layout).names
        if layout.prefix:  # the base model alone is written without it
            found = (*found, *(piece.removeprefix(layout.prefix) for piece in found))
        target = place_of(name, parameter.shape, config, written).names
        names |= dict(zip(found, target if len(target) == len(found) else target[:1] * len(found)))
    return names


def tensors_of(model: GPT, family: Family) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """What a family's file holds of `model`: (name, shape, function that gives the tensor), one after another.

    The biases that gpt2 and openai-gpt always have and this model does not are zeros. A tied head is not repeated.
    """
    config = model.config
    if family in ("gpt2", "openai-gpt"):
        config = replace(config, attn_bias=True, mlp_bias=True, norm_bias=True)
    own = dict(model.named_parameters())
    for name, expected in empty_model(config).named_parameters():
        place = place_of(name, expected.shape, config, LAYOUTS[family])
        pieces = zip(place.names, place.rows, place.shapes(expected.shape))
        start = 0
        for piece, rows, shape in pieces:
            yield piece, shape, _piece(own.get(name), slice(start, start + rows), shape, place.transposed)
            start += rows


def _piece(value: Tensor | None, rows: slice, shape: tuple[int, ...], transposed: bool) -> Callable[[], Tensor]:
    def give() -> Tensor:
        if value is None:
            return torch.zeros(shape)
        part = value.detach()[rows]
        return (part.t() if transposed else part).contiguous()

    return give


def to_halves(rows: Tensor, n_head: int) -> Tensor:
    """Rows of Q or K from interleaved rotary pairs (Meta, llama.cpp) to halves: in each head 0 2 4 ... 1 3 5 ..."""
    return rows.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)

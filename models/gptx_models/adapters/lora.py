"""Low-rank adaptation (LoRA, Hu et al. 2021) of a GPT: W x + (alpha / rank) B A x, with W frozen.

Targets have the module names of the model's family (c_attn; q_proj, v_proj). In gptx, Q, K and V
are one matrix, and so are gate and up. A family with separate modules for them, such as llama, has
one A and one B for each of its modules (a Piece). Knows no files: peft_files.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptx.errors import UsageError
from gptx_models.checkpoints.family import Family, family_of
from gptx_models.checkpoints.hf_names import LAYOUTS, stored_parameter
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

ALL_LINEAR = "all-linear"
# PEFT's defaults (TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING). PEFT does not know gptx: its
# default is the matrix that gpt2 has.
DEFAULT_TARGETS: dict[Family, tuple[str, ...]] = {
    "gpt2": ("c_attn",),
    "openai-gpt": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "gptx": ("qkv",),
}


@dataclass(frozen=True)
class Lora:
    """The settings of an adapter.

    alpha: the update is scaled by alpha / rank. targets: names of modules, or ALL_LINEAR; None
    means the family's DEFAULT_TARGETS. dropout: the probability with which each input of A is
    dropped in training. Raises UsageError for a value out of range.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                f"LoRA of rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}: expected"
                " a rank of at least 1, a positive alpha and a dropout from 0 to below 1"
            )

    @property
    def scale(self) -> float:
        """The factor of the update B A x."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Piece:
    """The rows of one of our matrices that form a separate module in the family.

    name: the family's module name, such as "model.layers.0.self_attn.q_proj". first: the index of
    the piece's first row in our matrix. rows: the number of rows.
    """

    name: str
    first: int
    rows: int


class LoraLinear(nn.Module):
    """linear(x) + scale B A dropout(x), with A (rank, in) and B (rows, rank) for each piece.

    A and B are fp32 whatever the linear's type is: their updates in training are too small for
    bf16.
    """

    def __init__(self, linear: nn.Linear, pieces: list[Piece], lora: Lora) -> None:
        super().__init__()
        self.linear, self.pieces, self.lora = linear, pieces, lora
        self.drop = nn.Dropout(lora.dropout)
        device = linear.weight.device
        self.a = nn.ParameterList(
            torch.empty(lora.rank, linear.in_features, device=device) for _ in pieces
        )
        self.b = nn.ParameterList(
            torch.zeros(piece.rows, lora.rank, device=device) for piece in pieces
        )
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # the initialization of nn.Linear and PEFT

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        total = y.shape[-1]
        if not torch.is_autocast_enabled(x.device.type):  # under autocast, F.linear casts
            x = x.to(self.a[0].dtype)
        for piece, a, b in zip(self.pieces, self.a, self.b):
            update = self.lora.scale * F.linear(F.linear(self.drop(x), a), b)  # (..., rows)
            y = y + F.pad(update.to(y.dtype), (piece.first, total - piece.first - piece.rows))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear itself, with the update added to its weights."""
        for piece, a, b in zip(self.pieces, self.a, self.b):
            self.linear.weight[piece.first : piece.first + piece.rows] += self.lora.scale * (b @ a)
        return self.linear


def add_lora(gpt: GPT, lora: Lora, family: Family | None = None) -> GPT:
    """Freeze all weights but a classification head's, and adapt the targets, in place.

    family: the family whose names the targets use; by default the one that the configuration is
    written as. Returns `gpt`. Raises UsageError that names unknown targets.
    """
    adapted = pieces_of(gpt.config, lora.targets, family)
    gpt.requires_grad_(False)
    if gpt.config.n_class:
        gpt.head.requires_grad_(True)
    for name, pieces in adapted.items():
        _adapt(gpt, name, pieces, lora)
    return gpt


def merge_lora(gpt: GPT) -> GPT:
    """Add the updates to the weights and make the modules plain Linears again, in place.

    Returns `gpt`.
    """
    for name, module in adapted_modules(gpt):
        _replace_module(gpt, name, module.merged())
    return gpt.requires_grad_(True)


def copy_of_shape(gpt: GPT) -> GPT:
    """A new GPT on the CPU with the same modules, adapters included. Its weights are not copied."""
    copy = GPT(gpt.config)
    for name, module in adapted_modules(gpt):
        _adapt(copy, name, module.pieces, module.lora)
    return copy


def adapted_modules(gpt: GPT) -> list[tuple[str, LoraLinear]]:
    """(name, module) of each adapted matrix."""
    return [
        (name, module) for name, module in gpt.named_modules() if isinstance(module, LoraLinear)
    ]


def _adapt(gpt: GPT, name: str, pieces: list[Piece], lora: Lora) -> None:
    linear = gpt.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name} is a {type(linear).__name__}"
    _replace_module(gpt, name, LoraLinear(linear, pieces, lora))


def _replace_module(gpt: GPT, name: str, module: nn.Module) -> None:
    parent, child = name.rsplit(".", 1)
    setattr(gpt.get_submodule(parent), child, module)


def pieces_of(
    config: GPTConfig, targets: tuple[str, ...] | None, family: Family | None = None
) -> dict[str, list[Piece]]:
    """The pieces that the targets name, by our module ("blocks.0.attn.qkv").

    As in PEFT, a target is the end of a module's name: c_proj means the one of attention and the
    one of the feed-forward. Raises UsageError for a target that no module has.
    """
    family = family or family_of(config)
    wanted = targets or DEFAULT_TARGETS[family]
    everything = all_pieces(config, family)
    names = {piece.name for pieces in everything.values() for piece in pieces}
    unknown = [
        t for t in wanted if t != ALL_LINEAR and not any(_is_named(name, t) for name in names)
    ]
    if unknown:
        known = sorted({name.rsplit(".", 1)[1] for name in names})
        raise UsageError(
            f"no module is called {', '.join(unknown)}: there are {', '.join(known)}, or"
            f" {ALL_LINEAR}"
        )
    chosen = {
        module: [
            p for p in pieces if ALL_LINEAR in wanted or any(_is_named(p.name, t) for t in wanted)
        ]
        for module, pieces in everything.items()
    }
    return {module: pieces for module, pieces in chosen.items() if pieces}


def _is_named(name: str, target: str) -> bool:
    """True if a target means the module with this name."""
    return name == target or name.endswith(f".{target}")


def all_pieces(config: GPTConfig, family: Family) -> dict[str, list[Piece]]:
    """The pieces of every matrix in the blocks, as a family names them, by our module."""
    with torch.device("meta"):
        gpt = GPT(config)
    found = {}
    for name, module in gpt.blocks.named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            place = stored_parameter(f"{name}.weight", module.weight.shape, config, LAYOUTS[family])
            firsts = [sum(place.rows[:at]) for at in range(len(place.rows))]
            names = (piece.removesuffix(".weight") for piece in place.names)
            found[name] = [Piece(*piece) for piece in zip(names, firsts, place.rows)]
    return found

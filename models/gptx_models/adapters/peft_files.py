"""Read and write a LoRA adapter's folder in PEFT's format.

The folder holds adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptx.errors import CheckpointError, first_of
from gptx_models.adapters.base import base_of
from gptx_models.adapters.lora import (
    Lora,
    adapted_modules,
    add_lora,
    all_pieces,
    merge_lora,
)
from gptx_models.adapters.peft_config import (
    CONFIG,
    adapter_config,
    check_adapter_config,
    lora_of_config,
)
from gptx_models.checkpoints.check_weights import check_finite
from gptx_models.checkpoints.checkpoint import SOURCE, load_model, read_family, write_json
from gptx_models.checkpoints.family import Family, family_of
from gptx_models.checkpoints.hf_names import LAYOUTS
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.tensor_files import open_file, write_safetensors
from gptx_models.gpt.model import GPT

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_HEAD = f"{_PREFIX}score.weight"
_MOST_NAMES = 3  # in a message


def save_adapter(
    gpt: GPT,
    folder: Path,
    lora: Lora,
    *,
    base: Path,
    source: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Write the adapter of a GPT that add_lora has changed into a folder.

    lora: the adapter's settings. base: the checkpoint that it adapts. source: becomes
    gptx_source.json. generation: becomes generation_config.json.
    """
    pairs = [
        pair
        for _, module in adapted_modules(gpt)
        for pair in zip(module.pieces, module.a, module.b)
    ]
    tensors: dict[str, Tensor] = {}
    for piece, a, b in pairs:
        tensors[_tensor_name(piece.name, "A")] = a.detach().contiguous()
        tensors[_tensor_name(piece.name, "B")] = b.detach().contiguous()
    if gpt.config.n_class:
        tensors[_HEAD] = gpt.head.weight.detach().contiguous()
    config = adapter_config(
        lora,
        base=base,
        modules={piece.name.rsplit(".", 1)[1] for piece, _, _ in pairs},
        transposed=bool(LAYOUTS[family_of(gpt.config)].transposed),
        has_head=gpt.config.n_class > 0,
    )
    write_json(folder / CONFIG, config)
    write_json(folder / SOURCE, source)
    write_json(folder / "generation_config.json", generation)
    # Not safetensors' save_file, whose files only their owner may read.
    write_safetensors(
        folder / WEIGHTS, [(name, tuple(t.shape), lambda t=t: t) for name, t in tensors.items()]
    )


def load_adapter(folder: Path, base: Path | None = None) -> GPT:
    """The base model with the adapter merged into it, in fp32 and eval mode.

    base: taken in place of the base that the adapter names. Raises CheckpointError.
    """
    config = read_json(folder / CONFIG)
    check_adapter_config(config, folder)
    base = base_of(folder, base)
    tensors = _read_tensors(folder)
    gpt = load_model(base)
    if _HEAD in tensors:
        gpt = _with_head(gpt, tensors.pop(_HEAD), folder)
    modules = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    family = _family_of_modules(gpt, base, modules, folder)
    lora = lora_of_config(config, modules, folder)
    _check_rank(lora, tensors, folder)
    add_lora(gpt, lora, family)
    _copy_tensors(gpt, tensors, folder)
    merged = merge_lora(gpt).eval()
    for name, weight in merged.named_parameters():  # infinite after a huge scale
        check_finite(weight.detach(), name, f"{folder} merged into {base}")
    return merged


def _tensor_name(module: str, matrix: str) -> str:
    return f"{_PREFIX}{module}.lora_{matrix}.weight"


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by name, in fp32. Raises CheckpointError."""
    names = [name for name in (WEIGHTS, PICKLE) if (folder / name).exists()]
    if not names:
        raise CheckpointError(f"{folder} has no {WEIGHTS}: copy it there")
    source = open_file(folder / names[0])
    tensors = {name: source.read(name).float() for name in source.shapes}
    for name, value in tensors.items():
        check_finite(value, name, source.where)
    return tensors


def _check_rank(lora: Lora, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise CheckpointError if the tensors are of another rank than the configuration says.

    Checked before the adapter is allocated: a wrong rank could fill the memory.
    """
    ranks = {
        len(value)
        for name, value in tensors.items()
        if name.endswith(".lora_A.weight") and value.ndim
    }
    if tensors and ranks != {lora.rank}:
        raise CheckpointError(
            f"{folder / CONFIG}: r is {lora.rank}, and the weights are of rank {sorted(ranks)}"
        )


def _family_of_modules(gpt: GPT, base: Path, modules: set[str], folder: Path) -> Family:
    """The family whose module names the adapter uses.

    Two families are tried: the one that gptx would write the base as, then the one whose names the
    base's files use. For a Mistral with a window these are gptx and llama. Raises CheckpointError
    if neither family has all modules.
    """
    unknown: set[str] = set()
    for family in (family_of(gpt.config), read_family(base)):
        known = {
            piece.name for pieces in all_pieces(gpt.config, family).values() for piece in pieces
        }
        unknown = modules - known
        if not unknown:
            return family
    raise CheckpointError(
        f"{folder} adapts modules that are no matrix of the base's layers:"
        f" {first_of(sorted(unknown), _MOST_NAMES)}; gptx computes those of attention and"
        " feed-forward: merge it with PEFT"
    )


def _with_head(gpt: GPT, weight: Tensor, folder: Path) -> GPT:
    """The same model with a classification head of this weight: (classes, n_embd)."""
    if weight.ndim != 2 or weight.shape[1] != gpt.config.n_embd or not len(weight):
        raise CheckpointError(
            f"{folder}: {_HEAD} is {list(weight.shape)}, expected [classes, {gpt.config.n_embd}]"
        )
    classifier = GPT(dataclasses.replace(gpt.config, n_class=weight.shape[0]))
    weights = {
        name: value for name, value in gpt.state_dict().items() if not name.startswith("head.")
    }
    classifier.load_state_dict({**weights, "head.weight": weight})
    return classifier


@torch.no_grad()
def _copy_tensors(gpt: GPT, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the tensors into the adapted modules. Raises CheckpointError if one does not fit."""
    left = dict(tensors)
    for _, module in adapted_modules(gpt):
        for piece, a, b in zip(module.pieces, module.a, module.b):
            for matrix, parameter in (("A", a), ("B", b)):
                name = _tensor_name(piece.name, matrix)
                found = left.pop(name, None)
                if found is None or found.shape != parameter.shape:
                    what = "no" if found is None else f"a {tuple(found.shape)}"
                    raise CheckpointError(
                        f"{folder} has {what} {name}, expected one of {tuple(parameter.shape)}"
                    )
                parameter.copy_(found)
    if left:
        raise CheckpointError(
            f"{folder} has tensors that belong to no module: {first_of(sorted(left), _MOST_NAMES)}"
        )

"""A LoRA adapter's folder in PEFT's format: adapter_config.json and adapter_model.safetensors, both ways.

What PEFT can write and gptx does not compute (DoRA, ranks by pattern, trained biases ...) is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptx.artifact.bounds import size_problem
from gptx.artifact.folders import kind_of
from gptx.errors import CheckpointError, shown
from gptx.progress import note
from gptx_models.adapters.lora import (
    ALL_LINEAR,
    Lora,
    adapted_modules,
    add_lora,
    all_pieces,
    merge_lora,
)
from gptx_models.checkpoints.check_weights import check_finite
from gptx_models.checkpoints.checkpoint import SOURCE, load_model, read_family, write_json
from gptx_models.checkpoints.family import Family, family_of
from gptx_models.checkpoints.hf_names import LAYOUTS
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.tensor_files import open_file, write_safetensors
from gptx_models.checkpoints.weight_files import has_weights
from gptx_models.gpt.config import number_problem
from gptx_models.gpt.model import GPT

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_HEAD = f"{_PREFIX}score.weight"
# what an adapter_config.json may say without a change to what is computed: how and where it was trained, and which
# modules it has, which the tensors show. Any other setting that is switched on is refused by name.
_TOLD = {
    "peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "base_model_name_or_path", "task_type", "auto_mapping", "peft_version",
    "revision", "inference_mode", "fan_in_fan_out", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_FINE: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # the others (PiSSA, OLoRA, LoftQ ...) begin by changing the base's weights, and what is saved goes with those
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}


def save_adapter(
    gpt: GPT,
    folder: Path,
    lora: Lora,
    *,
    base: Path,
    source: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Write the adapter of a GPT that add_lora has changed into a folder."""
    head = gpt.config.n_class > 0
    pairs = [
        pair
        for _, module in adapted_modules(gpt)
        for pair in zip(module.pieces, module.a, module.b)
    ]
    tensors: dict[str, Tensor] = {}
    for piece, a, b in pairs:
        tensors[f"{_PREFIX}{piece.name}.lora_A.weight"] = a.detach().contiguous()
        tensors[f"{_PREFIX}{piece.name}.lora_B.weight"] = b.detach().contiguous()
    if head:
        tensors[_HEAD] = gpt.head.weight.detach().contiguous()
    targets = lora.targets or {piece.name.rsplit(".", 1)[1] for piece, _, _ in pairs}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": ALL_LINEAR if ALL_LINEAR in targets else sorted(targets),
        "fan_in_fan_out": bool(LAYOUTS[family_of(gpt.config)].transposed),
        "bias": "none",
        "modules_to_save": ["score"] if head else None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    write_json(folder / SOURCE, source)
    write_json(folder / "generation_config.json", generation)
    # not safetensors' save_file, whose file only its owner can read
    write_safetensors(
        folder / WEIGHTS, [(name, tuple(t.shape), lambda t=t: t) for name, t in tensors.items()]
    )


def load_adapter(folder: Path, base: Path | None = None) -> GPT:
    """The base model with the adapter merged into it, in fp32. base: instead of the one that the adapter names.

    Raises CheckpointError.
    """
    config = read_json(folder / CONFIG)
    _check(config, folder)
    base = base_of(folder, base)
    tensors = _tensors(folder)
    gpt = load_model(base)
    if _HEAD in tensors:
        gpt = _with_head(gpt, tensors.pop(_HEAD), folder)
    modules = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    family = _family(gpt, base, modules, folder)
    lora = _lora(config, modules, folder)
    ranks = {
        len(value)
        for name, value in tensors.items()
        if name.endswith(".lora_A.weight") and value.ndim
    }
    if modules and ranks != {
        lora.rank
    }:  # now, as matrices of a rank that is not theirs could fill the memory
        raise CheckpointError(
            f"{folder / CONFIG}: r is {lora.rank}, and the weights are of rank {sorted(ranks)}"
        )
    add_lora(gpt, lora, family)
    _fill(gpt, tensors, folder)
    merged = merge_lora(gpt).eval()
    for name, weight in merged.named_parameters():  # of a scale without measure
        check_finite(weight.detach(), name, f"{folder} merged into {base}")
    return merged


def base_of(folder: Path, base: Path | None = None) -> Path:
    """The base's folder: `base`, or the one that the adapter names by its path, which may be relative to the adapter.
    CheckpointError where there is none."""
    name = str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")
    named = name[:200] or "a base that it does not name"
    whole = has_weights(folder)
    for place in (Path(name), folder / name) if base is None else (base,):
        # load_model refuses an artifact and an adapter
        if (name or base) and kind_of(place) in ("checkpoint", "artifact", "adapter"):
            if os.path.realpath(place) == os.path.realpath(folder):
                raise CheckpointError(
                    f"{folder} adapts the model in its own folder: move {CONFIG} and the adapter's weights to another"
                    f" folder, and name {folder} with gptx merge --base"
                )
            if whole and base is None:
                note(
                    f"{folder} holds a whole model too, which is not read: the adapter is for {place}"
                )
            return place
    if base is not None:
        return base
    if whole:
        raise CheckpointError(
            f"{folder} holds a whole model and an adapter for {named}, which is not here:"
            f" name that base with gptx merge --base, or take {CONFIG} away where the model itself is meant"
        )
    raise CheckpointError(
        f"{folder} adapts {named}, which is not here: gptx merge {folder} OUT --base CHECKPOINT says where it is"
    )


def _check(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of the kind {kind!s:.80}, and gptx reads LORA"
        )
    unread = {name: value for name, value in config.items() if value and name not in _TOLD}
    saved = unread.get("modules_to_save")
    if isinstance(saved, list) and all(name in ("score", "classifier") for name in saved):
        del unread["modules_to_save"]  # PEFT names both for any classifier
    other = [
        f"{name} {shown(value)}"
        for name, value in unread.items()
        if value not in _FINE.get(name, ())
    ]
    if other:
        raise CheckpointError(
            f"{folder} has what gptx does not compute: {'; '.join(other)}: merge it with PEFT"
        )


def _lora(config: dict[str, Any], modules: set[str], folder: Path) -> Lora:
    """The modules are those that the file has tensors of, whatever target_modules says: it may be a pattern."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)  # PEFT's own defaults
    for problem in (size_problem("r", rank), number_problem("lora_alpha", alpha)):
        if problem:
            raise CheckpointError(f"{folder / CONFIG}: {problem}")
    if config.get("use_rslora"):  # scaled by alpha / sqrt(rank) instead
        alpha *= math.sqrt(rank)
    return Lora(rank, alpha, tuple(sorted(modules)))


def _family(gpt: GPT, base: Path, modules: set[str], folder: Path) -> Family:
    """Whose names the file uses: the base's, or our own, where we adapted a model that no family computes."""
    unknown: set[str] = set()
    for family in (family_of(gpt.config), read_family(base)):
        known = {
            piece.name for pieces in all_pieces(gpt.config, family).values() for piece in pieces
        }
        unknown = modules - known
        if not unknown:
            return family
    raise CheckpointError(
        f"{folder} adapts what is no matrix of the base's layers: {_some(unknown)};"
        " gptx computes those of attention and feed-forward: merge it with PEFT"
    )


def _tensors(folder: Path) -> dict[str, Tensor]:
    names = [name for name in (WEIGHTS, PICKLE) if (folder / name).exists()]
    if not names:
        raise CheckpointError(f"{folder} has no {WEIGHTS}: copy it there")
    source = open_file(folder / names[0])
    tensors = {name: source.read(name).float() for name in source.shapes}
    for name, value in tensors.items():
        check_finite(value, name, source.where)
    return tensors


def _with_head(gpt: GPT, weight: Tensor, folder: Path) -> GPT:
    if weight.ndim != 2 or weight.shape[1] != gpt.config.n_embd or not len(weight):
        raise CheckpointError(
            f"{folder}: {_HEAD} is {list(weight.shape)}, expected [classes, {gpt.config.n_embd}]"
        )
    classified = GPT(dataclasses.replace(gpt.config, n_class=weight.shape[0]))
    weights = {
        name: value for name, value in gpt.state_dict().items() if not name.startswith("head.")
    }
    classified.load_state_dict({**weights, "head.weight": weight})
    return classified


@torch.no_grad()
def _fill(gpt: GPT, tensors: dict[str, Tensor], folder: Path) -> None:
    left = dict(tensors)
    for _, module in adapted_modules(gpt):
        for piece, *pair in zip(module.pieces, module.a, module.b):
            for kind, ours in zip("AB", pair):
                name = f"{_PREFIX}{piece.name}.lora_{kind}.weight"
                found = left.pop(name, None)
                if found is None or found.shape != ours.shape:
                    what = "no" if found is None else f"a {tuple(found.shape)}"
                    raise CheckpointError(
                        f"{folder} has {what} {name}, expected one of {tuple(ours.shape)}"
                    )
                ours.copy_(found)
    if left:
        raise CheckpointError(f"{folder} has tensors that belong to no module: {_some(set(left))}")


def _some(names: set[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")

"""A LoRA adapter's folder in PEFT's format: adapter_config.json and adapter_model.safetensors, both ways.

What PEFT can write and gptx does not compute (DoRA, ranks by pattern, trained biases ...) is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptx.errors import CheckpointError
from gptx_models.checkpoint import SOURCE, copy_tokenizer, load_model, write_json
from gptx_models.hf_config import family_of
from gptx_models.hf_layout import LAYOUTS, place_of
from gptx_models.lora import ALL_LINEAR, DEFAULT_TARGETS, Lora, LoraLinear, add_lora, merge_lora
from gptx_models.model import GPT
from gptx_models.tensor_files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# settings that change what is computed -> the values under which they don't
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "modules_to_save": (None, [], ["score"]),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
}


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def save_adapter(
    gpt: GPT, folder: Path, lora: Lora, *, base: Path, source: dict[str, Any], generation: dict[str, Any]
) -> None:
    """Write the adapter of a GPT that add_lora has changed, with the base's tokenizer, into a folder."""
    family = family_of(gpt.config)
    head = gpt.config.n_class > 0
    modules = [module for module in gpt.modules() if isinstance(module, LoraLinear)]
    tensors: dict[str, Tensor] = {}
    for module in modules:
        for piece, a, b in zip(module.pieces, module.a, module.b):
            tensors[f"{_PREFIX}{piece.name}.lora_A.weight"] = a.detach().contiguous()
            tensors[f"{_PREFIX}{piece.name}.lora_B.weight"] = b.detach().contiguous()
    if head:
        tensors[f"{_PREFIX}{_head_name(gpt)}"] = gpt.head.weight.detach().contiguous()
    targets = lora.targets or DEFAULT_TARGETS[family]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": ALL_LINEAR if ALL_LINEAR in targets else sorted(targets),
        "fan_in_fan_out": bool(LAYOUTS[family].transposed),
        "bias": "none",
        "modules_to_save": ["score"] if head else None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    write_json(folder / SOURCE, source)
    write_json(folder / "generation_config.json", generation)
    copy_tokenizer(base, folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(folder: Path, base: Path | None = None) -> GPT:
    """The base model with the adapter merged into it, in fp32. base: instead of the one that the adapter names.

    Raises CheckpointError.
    """
    config = read_json(folder / CONFIG)
    _check(config, folder)
    gpt = load_model(base_of(folder, base))
    tensors = _tensors(folder)
    head = next((name for name in tensors if name.endswith("score.weight")), None)
    if head:
        gpt = _with_head(gpt, tensors.pop(head))
    lora = _lora(config, tensors)
    add_lora(gpt, lora)
    _fill(gpt, tensors, folder)
    return merge_lora(gpt).eval()


def base_of(folder: Path, base: Path | None = None) -> Path:
    """The base's folder. CheckpointError where there is none."""
    if base is not None:
        return base
    name = str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")
    for place in (Path(name), folder / name):
        if name and (place / "config.json").exists():
            return place
    raise CheckpointError(
        f"{folder} adapts {name or 'a base that it does not name'}, which is not here:"
        f" gptx merge {folder} OUT --base CHECKPOINT says where it is"
    )


def _check(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder} is a {kind} adapter, and gptx reads LORA")
    other = [
        f"{name} {config[name]!r}" for name, fine in _NEUTRAL.items() if name in config and config[name] not in fine
    ]
    if other:
        raise CheckpointError(f"{folder} has what gptx does not compute: {'; '.join(other)}: merge it with PEFT")


def _lora(config: dict[str, Any], tensors: dict[str, Tensor]) -> Lora:
    """The modules are those that the file has tensors of, whatever target_modules says: it may be a pattern."""
    rank = int(config["r"])
    alpha = float(config.get("lora_alpha", rank))
    if config.get("use_rslora"):  # scaled by alpha / sqrt(rank) instead
        alpha *= math.sqrt(rank)
    names = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    return Lora(rank, alpha, tuple(sorted(names)))


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} has no {WEIGHTS}: save the adapter again with safe_serialization=True")
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own, and OSError
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read ({error}): copy it again") from error
    return {name: tensor.float() for name, tensor in tensors.items()}


def _with_head(gpt: GPT, weight: Tensor) -> GPT:
    classified = GPT(dataclasses.replace(gpt.config, n_class=weight.shape[0]))
    weights = {name: value for name, value in gpt.state_dict().items() if not name.startswith("head.")}
    classified.load_state_dict({**weights, "head.weight": weight})
    return classified


@torch.no_grad()
def _fill(gpt: GPT, tensors: dict[str, Tensor], folder: Path) -> None:
    left = dict(tensors)
    for module in gpt.modules():
        if not isinstance(module, LoraLinear):
            continue
        for piece, *pair in zip(module.pieces, module.a, module.b):
            for kind, ours in zip("AB", pair):
                name = f"{_PREFIX}{piece.name}.lora_{kind}.weight"
                found = left.pop(name, None)
                if found is None or found.shape != ours.shape:
                    what = "no" if found is None else f"a {tuple(found.shape)}"
                    raise CheckpointError(f"{folder / WEIGHTS} has {what} {name}, expected one of {tuple(ours.shape)}")
                ours.copy_(found)
    if left:
        raise CheckpointError(f"{folder / WEIGHTS} has tensors that belong to no module: {', '.join(sorted(left)[:5])}")


def _head_name(gpt: GPT) -> str:
    layout = LAYOUTS[family_of(gpt.config)]
    return place_of("head.weight", gpt.head.weight.shape, gpt.config, layout).names[0]

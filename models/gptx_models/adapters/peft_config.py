"""PEFT's adapter_config.json <-> Lora.

A setting that changes what is computed and that gptx does not compute (DoRA, ranks by pattern,
trained biases, ...) is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gptx.artifact.bounds import size_problem
from gptx.errors import CheckpointError, shown
from gptx_models.adapters.lora import ALL_LINEAR, Lora
from gptx_models.gpt.config import number_problem

CONFIG = "adapter_config.json"
_PEFT_RANK, _PEFT_ALPHA = 8, 8  # LoraConfig's defaults
# Settings that change nothing that is computed from the tensors in the file: how and where the
# adapter was trained, and which modules it has. Any other setting that is switched on is refused.
_HARMLESS = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "base_model_name_or_path",
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "fan_in_fan_out",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
}
# Setting -> the values that change nothing. Other values of init_lora_weights (PiSSA, OLoRA, LoftQ)
# change the base's weights before training; the saved adapter belongs to those weights.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}
_HEADS = ("score", "classifier")  # PEFT lists both names for every classifier


def adapter_config(
    lora: Lora, *, base: Path, modules: Collection[str], transposed: bool, has_head: bool
) -> dict[str, Any]:
    """The fields of adapter_config.json.

    modules: the names of the adapted modules, for a Lora without targets. transposed: the base's
    files store weights as (in, out).
    """
    targets = lora.targets or modules
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if has_head else "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": ALL_LINEAR if ALL_LINEAR in targets else sorted(targets),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": ["score"] if has_head else None,
        "inference_mode": True,
    }


def check_adapter_config(config: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError if gptx does not compute what adapter_config.json says."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of the kind {kind!s:.80}, and gptx reads LORA"
        )
    others = {name: value for name, value in config.items() if value and name not in _HARMLESS}
    saved = others.get("modules_to_save")
    if isinstance(saved, list) and all(name in _HEADS for name in saved):
        del others["modules_to_save"]
    refused = [
        f"{name} {shown(value)}"
        for name, value in others.items()
        if value not in _NEUTRAL.get(name, ())
    ]
    if refused:
        raise CheckpointError(
            f"{folder} has what gptx does not compute: {'; '.join(refused)}: merge it with PEFT"
        )


def lora_of_config(config: dict[str, Any], modules: set[str], folder: Path) -> Lora:
    """The Lora of an adapter_config.json.

    modules: the modules for which the adapter's file has tensors. They become the targets.
    target_modules is not used, because it may be a pattern. Raises CheckpointError for a rank or
    alpha out of range.
    """
    rank, alpha = config.get("r", _PEFT_RANK), config.get("lora_alpha", _PEFT_ALPHA)
    for problem in (size_problem("r", rank), number_problem("lora_alpha", alpha)):
        if problem:
            raise CheckpointError(f"{folder / CONFIG}: {problem}")
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # so that alpha / rank is rsLoRA's alpha / sqrt(rank)
    return Lora(rank, alpha, tuple(sorted(modules)))

"""Read and write a checkpoint folder: Hugging Face's config.json and model.safetensors <-> GPT.

Reads model_type gpt2, openai-gpt, llama, mistral and gptx. Writes the Hugging Face type that
computes the model, or gptx if there is none. Copies tokenizer files without reading them.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from gptx.artifact.class_head import Head
from gptx.artifact.folders import kind_of
from gptx.errors import CheckpointError
from gptx_models.checkpoints.family import Family, family_of
from gptx_models.checkpoints.head_fields import head_of
from gptx_models.checkpoints.hf_names import LAYOUTS, Layout
from gptx_models.checkpoints.read_config import read_config
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.tensor_files import (
    TORCH_TYPES,
    WeightType,
    open_folder,
    write_safetensors,
)
from gptx_models.checkpoints.weights import build, tensors_of
from gptx_models.checkpoints.write_config import write_config
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

SOURCE = "gptx_source.json"  # where the weights come from
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FAMILY_OF_TYPE: dict[str, Family] = {  # by model_type
    "gpt2": "gpt2",
    "openai-gpt": "openai-gpt",
    "llama": "llama",
    "mistral": "llama",
}


def load_config(folder: Path) -> GPTConfig:
    """The configuration of the model in a checkpoint folder. Raises CheckpointError."""
    folder = Path(folder)
    return read_config(_config_json(folder), str(folder / "config.json"))


def load_head(folder: Path) -> Head | None:
    """The classification head of a checkpoint, or None for a language model.

    Raises CheckpointError.
    """
    load_config(folder)
    return head_of(_config_json(folder))


def load_model(folder: Path) -> GPT:
    """The model in a checkpoint folder, in fp32 and eval mode. Raises CheckpointError."""
    folder = Path(folder)
    return build(load_config(folder), read_layout(folder), open_folder(folder))


def read_layout(folder: Path) -> Layout:
    """How a checkpoint folder stores the weights. Raises CheckpointError."""
    return LAYOUTS[read_family(folder)]


def read_family(folder: Path) -> Family:
    """The family whose tensor names a checkpoint folder uses. Raises CheckpointError."""
    return _FAMILY_OF_TYPE.get(_config_json(folder)["model_type"], "gptx")


def weight_type_of(folder: Path) -> WeightType:
    """The type of a checkpoint's weights. For mixed types it is F32, which loses no value.

    Raises CheckpointError.
    """
    ignored = read_layout(folder).ignored
    stored = open_folder(folder).types
    types = {stored[name] for name in stored if not re.search(ignored, name)}
    for weight_type in TORCH_TYPES:
        if types == {weight_type}:
            return weight_type
    return "F32"


def save_checkpoint(
    model: GPT,
    folder: Path,
    *,
    tokenizer_files: Path | None,
    source: dict[str, Any],
    generation: dict[str, Any] | None,
    head: Head | None = None,
    weight_type: WeightType = "F32",
) -> Family:
    """Write a checkpoint folder, and return the family that its config.json names.

    tokenizer_files: a folder whose tokenizer files are copied, or a tokenizer.json. source: becomes
    gptx_source.json. generation: becomes generation_config.json (bos_token_id, do_sample, ...).
    head: the classification head. weight_type: the type that the weights are stored in; a value
    beyond its range raises CheckpointError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    family = write_configs(folder, model.config, generation or {}, head, weight_type)
    write_json(folder / SOURCE, source)
    if tokenizer_files is not None:
        copy_tokenizer(Path(tokenizer_files), folder)
    write_safetensors(folder / "model.safetensors", tensors_of(model, family), weight_type)
    return family


def write_configs(
    folder: Path,
    config: GPTConfig,
    generation: dict[str, Any],
    head: Head | None = None,
    weight_type: WeightType = "F32",
) -> Family:
    """Write config.json and generation_config.json, and return the family of config.json."""
    family = family_of(config)
    tokens = {name: generation.get(name) for name in _TOKEN_IDS}
    values = write_config(config, family, tokens, head)
    if "torch_dtype" in values:
        values["torch_dtype"] = str(TORCH_TYPES[weight_type]).removeprefix("torch.")
    write_json(folder / "config.json", values)
    write_json(folder / "generation_config.json", generation)
    return family


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer.json, or the tokenizer files of a folder, into a checkpoint folder."""
    if source.is_file():
        shutil.copyfile(source, folder / "tokenizer.json")
        return
    for name in _TOKENIZER_FILES:
        if (source / name).exists() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _config_json(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises CheckpointError if it is no checkpoint."""
    kind = kind_of(folder)
    if kind == "missing":
        raise CheckpointError(f"{folder} does not exist")
    if kind == "artifact":
        raise CheckpointError(
            f"{folder} is an ONNX artifact, not a checkpoint: run it with `gptx run -m {folder}`, "
            f"or make it smaller with `gptx quantize {folder} OUT`"
        )
    if kind == "adapter":
        raise CheckpointError(
            f"{folder} is a LoRA adapter, not a checkpoint (it has adapter_config.json): gptx merge"
            f" {folder} OUT makes one"
        )
    if kind != "checkpoint":
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json")
    return read_json(folder / "config.json")

"""A checkpoint folder: Hugging Face-shaped config.json and model.safetensors <-> our GPT.

Reads model_type gpt2, openai-gpt, llama (mistral) and gptx; writes the Hugging Face kind wherever the model can be
expressed as one, else gptx. What a tokenizer is, it does not know: those files are copied.
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
from gptx_models.checkpoints.hf_config import Family, family_of, head_of, read_config, write_config
from gptx_models.checkpoints.hf_names import LAYOUTS, Layout
from gptx_models.checkpoints.tensor_files import (
    STORED,
    Stored,
    open_folder,
    read_json,
    write_safetensors,
)
from gptx_models.checkpoints.weights import build, tensors_of
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

SOURCE = "gptx_source.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_READ_AS: dict[str, Family] = {
    "gpt2": "gpt2",
    "openai-gpt": "openai-gpt",
    "llama": "llama",
    "mistral": "llama",
}


def load_config(folder: Path) -> GPTConfig:
    """The configuration of the model in a checkpoint folder. Raises CheckpointError."""
    folder = Path(folder)
    return read_config(_raw_config(folder), str(folder / "config.json"))


def load_head(folder: Path) -> Head | None:
    """What config.json says of the model's classification head; None of a language model. Raises CheckpointError."""
    load_config(folder)
    return head_of(_raw_config(folder))


def load_model(folder: Path) -> GPT:
    """The model in a checkpoint folder, in fp32 and eval mode. Raises CheckpointError."""
    folder = Path(folder)
    return build(load_config(folder), read_layout(folder), open_folder(folder))


def read_layout(folder: Path) -> Layout:
    """How the weights of a checkpoint folder are laid out."""
    return LAYOUTS[read_family(folder)]


def read_family(folder: Path) -> Family:
    """Whose names the weights of a checkpoint folder have."""
    return _READ_AS.get(_raw_config(folder)["model_type"], "gptx")


def stored_as(folder: Path) -> Stored:
    """The type that the weights of a checkpoint folder have; where they have several: fp32, which holds them all."""
    ignored = read_layout(folder).ignored
    kinds = {
        kind for name, kind in open_folder(folder).types.items() if not re.search(ignored, name)
    }
    only: list[Stored] = [kind for kind in STORED if kinds == {kind}]
    return only[0] if only else "F32"


def save_checkpoint(
    model: GPT,
    folder: Path,
    *,
    tokenizer_files: Path | None,
    source: dict[str, Any],
    generation: dict[str, Any] | None,
    head: Head | None = None,
    stored: Stored = "F32",
) -> Family:
    """Write a checkpoint folder, and return which family config.json names.

    `tokenizer_files` is a folder whose tokenizer files are copied, or a tokenizer.json; `source` becomes
    gptx_source.json; `generation` (bos_token_id, eos_token_id, do_sample, ...) becomes generation_config.json.
    `head` describes a classification head; `stored` is the type that the weights are written in.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    family = write_configs(folder, model.config, generation or {}, head, stored)
    write_json(folder / SOURCE, source)
    if tokenizer_files is not None:
        copy_tokenizer(Path(tokenizer_files), folder)
    write_safetensors(folder / "model.safetensors", tensors_of(model, family), stored)
    return family


def write_configs(
    folder: Path,
    config: GPTConfig,
    generation: dict[str, Any],
    head: Head | None = None,
    stored: Stored = "F32",
) -> Family:
    """Write config.json and generation_config.json, and return which family config.json names."""
    family = family_of(config)
    values = write_config(config, family, {name: generation.get(name) for name in _TOKENS}, head)
    if "torch_dtype" in values:
        values["torch_dtype"] = str(STORED[stored]).removeprefix("torch.")
    write_json(folder / "config.json", values)
    write_json(folder / "generation_config.json", generation)
    return family


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer.json, or the tokenizer files of a folder, into a checkpoint folder."""
    if source.is_file():
        shutil.copyfile(source, folder / "tokenizer.json")
        return
    for name in TOKENIZER_FILES:
        if (source / name).exists() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _raw_config(folder: Path) -> dict[str, Any]:
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
            f"{folder} is a LoRA adapter, not a checkpoint (it has adapter_config.json): gptx merge {folder} OUT makes one"
        )
    if kind != "checkpoint":
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json")
    return read_json(folder / "config.json")

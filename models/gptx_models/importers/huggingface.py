"""A Hugging Face folder (gpt2, openai-gpt, llama, mistral), or one of gptx -> GPT and tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from gptx.artifact.hashes import sha256
from gptx_models.checkpoints.checkpoint import SOURCE, load_config, load_head, read_layout
from gptx_models.checkpoints.family import family_of
from gptx_models.checkpoints.hf_names import LAYOUTS, written_names
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.side_files import read_side_files
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.checkpoints.tensor_source import TensorSource, showing_progress
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.weight_files import weight_files
from gptx_models.checkpoints.weights import build
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.imported import Imported, Tell, quiet


def import_folder(folder: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read a Hugging Face folder.

    `tell` is called with a line for each thing that is left out. Raises CheckpointError.
    """
    config, layout, source = load_config(folder), read_layout(folder), open_folder(folder)
    with showing_progress(source) as tensors:
        model = build(config, layout, tensors)
    tokenizer = None if tokenizer_wanted else TokenizerFiles()
    side = read_side_files(folder, config.vocab_size, tokenizer=tokenizer, tell=tell)
    about = source_of(folder, config, source)
    return Imported(model, about, side.tokenizer, side.generation, load_head(folder), side.kept)


def source_of(folder: Path, config: GPTConfig, source: TensorSource) -> dict[str, Any]:
    """The content of gptx_source.json for a folder: where its weights come from.

    If the folder already has a gptx_source.json, its content is returned. Raises CheckpointError.
    """
    if (folder / SOURCE).exists():
        return read_json(folder / SOURCE)
    with torch.device("meta"):
        model = GPT(config)
    names = written_names(model, read_layout(folder), LAYOUTS[family_of(config)])
    about: dict[str, Any] = {
        "format": "huggingface",
        "name": folder.resolve().name,
        "sha256": {file.name: sha256(file) for file in weight_files(folder)},
        "tensor_types": {names[name]: kind for name, kind in source.types.items() if name in names},
    }
    licence = _licence(folder / "README.md")
    return {**about, "licence": licence} if licence else about


def _licence(card: Path) -> str | None:
    """The licence in the front matter of a model card; None if it names none."""
    if not card.exists():
        return None
    match = re.match(
        r"---\n(?:.*\n)*?license: *['\"]?([\w.-]+)", card.read_text("utf-8", errors="replace")
    )
    return match[1] if match else None

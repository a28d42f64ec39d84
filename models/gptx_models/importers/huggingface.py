"""A Hugging Face folder (gpt2, openai-gpt, llama, mistral; also our own gptx) -> our GPT, tokenizer and token ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gptx_models.checkpoint import SOURCE, load_config, load_head, read_layout
from gptx_models.hf_config import family_of
from gptx_models.hf_layout import LAYOUTS, written_names
from gptx_models.importers.imported import Imported, Tell, quiet
from gptx_models.tensor_files import open_folder, read_json, sha256, weight_files
from gptx_models.tokenizer_files import TokenizerFiles, read_tokenizer_folder
from gptx_models.weights import build, shown

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def import_folder(folder: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read a Hugging Face folder whole. Raises CheckpointError."""
    config, layout, source = load_config(folder), read_layout(folder), open_folder(folder)
    with shown(source) as read:
        model = build(config, layout, read)
    if (folder / SOURCE).exists():  # a checkpoint of ours: it goes on saying where the weights came from first
        about = read_json(folder / SOURCE)
    else:
        about = _about(folder, written_names(model, layout, LAYOUTS[family_of(config)]), source.types)
    tokenizer = read_tokenizer_folder(folder) if tokenizer_wanted else TokenizerFiles()
    if tokenizer_wanted and not tokenizer.files and (folder / "tokenizer.model").exists():
        tell(
            f"{folder} has tokenizer.model and no tokenizer.json: transformers makes one, with "
            "AutoTokenizer.from_pretrained(IN).save_pretrained(OUT); then give it with --tokenizer OUT"
        )
    generation = generation_of(folder, tokenizer, config.vocab_size, tell)
    return Imported(model, about, tokenizer.files, generation, load_head(folder))


def _about(folder: Path, names: dict[str, str], types: dict[str, str]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "format": "huggingface",
        "name": folder.resolve().name,
        "sha256": {file.name: sha256(file) for file in weight_files(folder)},
        "tensor_types": {names[name]: kind for name, kind in types.items() if name in names},
    }
    licence = _licence(folder / "README.md")
    return {**about, "licence": licence} if licence else about


def generation_of(folder: Path, tokenizer: TokenizerFiles, vocab_size: int, tell: Tell) -> dict[str, Any]:
    """generation_config.json; token ids that it does not give come from config.json, else from the tokenizer."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    config = read_json(folder / "config.json")
    for name in _IDS:
        value = next((place[name] for place in (generation, config) if place.get(name) is not None), None)
        value = tokenizer.generation.get(name) if value is None else value
        ids = value if isinstance(value, list) else [value]
        beyond = [token for token in ids if token is not None and token >= vocab_size]
        if beyond:
            tell(f"{folder}: {name} is {value}, beyond the vocabulary of {vocab_size:,} tokens: it is left out")
        generation[name] = None if beyond else value
    return {name: value for name, value in generation.items() if value is not None}


def _licence(card: Path) -> str | None:
    """The licence that a model card's front matter names."""
    if not card.exists():
        return None
    match = re.match(r"---\n(?:.*\n)*?license: *['\"]?([\w.-]+)", card.read_text("utf-8", errors="replace"))
    return match[1] if match else None

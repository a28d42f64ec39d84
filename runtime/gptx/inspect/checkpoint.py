"""Describe a checkpoint folder from its config.json and the headers of its safetensors files."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gptx.artifact.class_head import N_LABELS
from gptx.artifact.json_files import read_json
from gptx.artifact.layout import REFERENCE
from gptx.errors import ArtifactError, CheckpointError
from gptx.inspect.description import (
    Description,
    count_in_words,
    files_in,
    quoted,
    source_rows,
    task_rows,
)
from gptx.parity.certificate_rows import Rows

# Values of model_type in config.json that gptx export covers with gptx's own GPT
_COVERED = ("gpt2", "openai-gpt", "llama", "mistral", "gptx")
# Word -> names that config.json may use for it
_SHAPE = {
    "layers": ("n_layer", "num_hidden_layers"),
    "heads": ("n_head", "num_attention_heads"),
    "width": ("n_embd", "hidden_size"),
    "context": ("n_ctx", "n_positions", "max_position_embeddings"),
    "vocabulary": ("vocab_size",),
}


def describe_checkpoint(path: Path) -> Description:
    """Describe the checkpoint folder `path`.

    Raises CheckpointError for a damaged weight file, ArtifactError for broken JSON.
    """
    config = _json(path / "config.json")
    files = files_in(path, lambda folder, name: (folder / name).is_file())
    tensors = _tensors(path)
    parameters = sum(math.prod(shape) for shape, _ in tensors.values())
    types = Counter(dtype for _, dtype in tensors.values())
    covered = config.get("model_type") in _COVERED
    command = f"gptx export {quoted(path)} {quoted(f'{path}-onnx')}"
    command += "" if covered else " --via optimum"
    facts = [
        ("kind", "checkpoint folder: weights that gptx export, train and finetune read"),
        ("model", _model_in_words(config)),
        ("shape", _shape_in_words(config)),
        *_weight_rows(parameters, len(tensors), types),
        ("tokenizer", _tokenizer_in_words(path)),
        ("chat template", "yes" if (path / "chat_template.jinja").exists() else "none"),
        *task_rows(path, _n_labels(config)),
        *source_rows(_json(path / "gptx_source.json")),
    ]
    data = {
        "kind": "checkpoint",
        "path": str(path),
        "config": config,
        "parameters": parameters,
        "tensor_types": dict(types),
        "bytes": sum(size for _, size in files),
        "files": dict(files),
        "next": command,
    }
    return Description("checkpoint", facts, files, [], [command], data)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, ArtifactError, optional=True)


def _model_in_words(config: dict[str, Any]) -> str:
    kind = config.get("model_type")
    known = kind in _COVERED
    return f"{kind or 'of no model_type'}" + (
        "" if known else ", which gptx's own GPT does not cover"
    )


def _shape_in_words(config: dict[str, Any]) -> str:
    found = []
    for word, names in _SHAPE.items():
        name = next((name for name in names if config.get(name) is not None), None)
        if name is not None:
            found.append(f"{word} {config[name]}")
    return ", ".join(found) or "not in config.json"


def _weight_rows(parameters: int, n_tensors: int, types: Counter[str]) -> Rows:
    if not n_tensors:
        return [("parameters", "no .safetensors file here"), ("types", "unknown")]
    return [
        ("parameters", f"{count_in_words(parameters)} in {n_tensors} tensors"),
        ("types", ", ".join(f"{dtype} ({n})" for dtype, n in types.most_common())),
    ]


def _tokenizer_in_words(path: Path) -> str:
    there = (path / "tokenizer.json").exists()
    return "tokenizer.json" if there else "none: it will run on token ids"


def _n_labels(config: dict[str, Any]) -> int:
    """Outputs of the classification head that config.json describes; 0 if it has none.

    The rules are those of transformers: ForSequenceClassification among `architectures`, and as
    many labels as id2label or num_labels says.
    """
    names, ours = config.get("architectures"), config.get("n_class")
    if isinstance(ours, int) and ours > 0:
        return ours
    if not isinstance(names, list) or not any("ForSequenceClassification" in str(n) for n in names):
        return 0
    labels, count = config.get("id2label"), config.get("num_labels")
    if labels and isinstance(labels, dict):
        return len(labels)
    return count if isinstance(count, int) else N_LABELS


def _tensors(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor in the folder's safetensors files, from their headers."""
    tensors: dict[str, tuple[list[int], str]] = {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name != REFERENCE:
            tensors |= _tensors_of(file)
    return tensors


def _tensors_of(file: Path) -> dict[str, tuple[list[int], str]]:
    if not file.is_file():
        what = "a link that leads nowhere" if file.is_symlink() else "not a file"
        raise CheckpointError(f"{file} is {what}: copy or download it again")
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (one.get_shape(), one.get_dtype()) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file, or cut short ({error}): copy it again, or run"
            " git lfs pull"
        ) from error

"""The files in a checkpoint folder that hold its weights: one file, or the shards of an index."""

from __future__ import annotations

import os
from pathlib import Path

from gptx.artifact.folders import lies_inside
from gptx.errors import CheckpointError, first_of
from gptx_models.checkpoints.read_files import read_json

_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
# Endings of files that may hold weights under another name or in another format.
_OTHER_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
)
_MOST_NAMES = 20  # file names in a message


def has_weights(folder: Path) -> bool:
    """True if a folder holds a model's weights, in one file or in shards."""
    return any(
        (folder / name).exists() or (folder / f"{name}.index.json").exists() for name in _FILE_NAMES
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights.

    They are model.safetensors or the shards that its index names; if there are none,
    pytorch_model.bin or the shards of its index. Raises CheckpointError if there are no such files,
    or if an index names files that are missing or outside the folder.
    """
    for name in _FILE_NAMES:
        if os.path.lexists(
            folder / name
        ):  # lexists is true for a broken link, too: report it, do not skip it
            return [folder / name]
        if (index := folder / f"{name}.index.json").exists():
            return _shards(index)
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHER_SUFFIXES)
    found = f", and found {first_of(others, _MOST_NAMES)}" if others else ""
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or an index"
        f" of such files{found}"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index (model.safetensors.index.json) names."""
    folder = index.parent
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(
            f"{index} has no weight_map from tensors to files: copy or download it again"
        )
    names = sorted(set(places.values()))
    # os.path.exists, not Path.exists, which raises for a name that is too long
    missing = [name[:200] for name in names if not os.path.exists(folder / name)]
    if missing or not names:
        raise CheckpointError(
            f"{index} names {len(names)} files, and these are missing:"
            f" {first_of(missing, _MOST_NAMES)}"
        )
    if outside := [name for name in names if not lies_inside(folder / name, folder)]:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    return [folder / name for name in names]

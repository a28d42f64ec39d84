"""The checkpoint that an export starts from: is it one, and what gptx.json says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptx.artifact.folders import kind_of
from gptx.artifact.hashes import sha256
from gptx.errors import CheckpointError, UsageError
from gptx.progress import stage


def expect_checkpoint(source: Path) -> None:
    """Raise CheckpointError or UsageError, with the remedy, if `source` is no checkpoint folder."""
    kind = kind_of(source)
    if kind == "artifact":
        raise UsageError(
            f"{source} is an artifact already: run it with `gptx run -m {source}`;"
            " export takes a checkpoint"
        )
    if kind == "adapter":
        raise CheckpointError(
            f"{source} is a LoRA adapter (it has adapter_config.json): `gptx merge {source} OUT`"
            " makes a checkpoint of the adapter and its base"
        )
    if kind == "missing":
        raise CheckpointError(
            f"{source} does not exist: give a checkpoint folder, or what `gptx import` takes"
        )
    if kind != "checkpoint":
        raise CheckpointError(
            f"{source} is no checkpoint folder: it has no config.json; see `gptx import --help`"
        )


def hash_weights(checkpoint: Path) -> dict[str, Any]:
    """`checkpoint_sha256` for gptx.json: the SHA-256 of each weight file by its name."""
    with stage("Hashing the checkpoint"):
        files = [
            file for end in ("*.safetensors", "*.bin") for file in sorted(checkpoint.glob(end))
        ]
        return {"checkpoint_sha256": {file.name: sha256(file) for file in files}}

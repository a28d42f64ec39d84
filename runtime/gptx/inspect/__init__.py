"""Describe what a folder holds: an artifact or a checkpoint in, a Description out.

Only small JSON files and the headers of weight files are read, never the weights, so this is quick
for models of any size. It needs neither ONNX Runtime nor torch.
"""

from __future__ import annotations

from pathlib import Path

from gptx.artifact.folders import kind_of
from gptx.errors import ArtifactError, CheckpointError
from gptx.inspect.artifact import describe_artifact, generation_in_words
from gptx.inspect.checkpoint import describe_checkpoint
from gptx.inspect.description import Description, quoted

__all__ = ["Description", "describe", "generation_in_words"]

# Files that gptx import reads, by suffix
_IMPORTABLE = {
    ".gguf": "a GGUF file",
    ".pt": "a PyTorch checkpoint",
    ".bin": "a llama2.c or PyTorch checkpoint",
}


def describe(path: Path) -> Description:
    """Describe the folder `path`.

    Raises ArtifactError or CheckpointError if the folder is damaged, or is neither an artifact nor
    a checkpoint. The message names the command to type instead, if there is one.
    """
    kind = kind_of(path)
    if kind == "artifact":
        return describe_artifact(path)
    if kind == "checkpoint":
        return describe_checkpoint(path)
    if kind == "file" and path.suffix in _IMPORTABLE:
        raise CheckpointError(
            f"{path} is {_IMPORTABLE[path.suffix]}: gptx import {quoted(path)} OUT makes a"
            " checkpoint folder of it"
        )
    if kind == "adapter":
        raise ArtifactError(
            f"{path} is a LoRA adapter: make a model of it with gptx merge {quoted(path)} OUT"
            f" or gptx export {quoted(path)} OUT, and inspect OUT"
        )
    if kind == "folder":
        raise ArtifactError(
            f"{path} is neither an artifact nor a checkpoint: it holds no gptx.json and no"
            " config.json"
        )
    what = "does not exist" if kind == "missing" else "is a file"
    raise ArtifactError(f"{path} {what}, and inspect takes a folder: an artifact or a checkpoint")

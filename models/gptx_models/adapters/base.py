"""Find the base checkpoint of an adapter folder."""

from __future__ import annotations

import os
from pathlib import Path

from gptx.artifact.folders import kind_of
from gptx.errors import CheckpointError
from gptx.progress import note
from gptx_models.adapters.peft_config import CONFIG
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.weight_files import has_weights


def base_of(adapter: Path, base: Path | None = None) -> Path:
    """The folder of an adapter's base.

    It is `base` if that is given, else the path that the adapter names, which may be relative to
    the adapter's folder. Raises CheckpointError if there is no such folder, or if it is the
    adapter's own.
    """
    name = str(read_json(adapter / CONFIG).get("base_model_name_or_path") or "")
    candidates = [base] if base is not None else [Path(name), adapter / name] if name else []
    for folder in candidates:
        # load_model refuses an artifact and an adapter with a message of its own.
        if kind_of(folder) in ("checkpoint", "artifact", "adapter"):
            _check_other_folder(adapter, folder)
            if base is None and has_weights(adapter):
                note(
                    f"{adapter} holds a whole model too, which is not read: the adapter is for"
                    f" {folder}"
                )
            return folder
    if base is not None:
        return base
    raise CheckpointError(_not_here(adapter, name[:200] or "a base that it does not name"))


def _check_other_folder(adapter: Path, base: Path) -> None:
    if os.path.realpath(base) == os.path.realpath(adapter):
        raise CheckpointError(
            f"{adapter} adapts the model in its own folder: move {CONFIG} and the adapter's weights"
            f" to another folder, and name {adapter} with gptx merge --base"
        )


def _not_here(adapter: Path, base_name: str) -> str:
    """The message for an adapter whose base is not found."""
    if has_weights(adapter):
        return (
            f"{adapter} holds a whole model and an adapter for {base_name}, which is not here: name"
            f" that base with gptx merge --base, or take {CONFIG} away if the model itself is meant"
        )
    return (
        f"{adapter} adapts {base_name}, which is not here: gptx merge {adapter} OUT --base"
        " CHECKPOINT says where it is"
    )

"""The command that most people type next with an artifact, as one line that can be pasted."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = '"Once upon a time"'


def use(artifact: Path | None) -> str:
    """The command that uses `artifact` for its task; None: the model that ships with gptx."""
    from gptx.artifact.manifest import read_manifest
    from gptx.artifact.uses import use_command
    from gptx.model import DEFAULT_MODEL

    if artifact is None or artifact.resolve() == DEFAULT_MODEL.resolve():
        return f"gptx run {EXAMPLE}"
    return use_command(read_manifest(artifact), EXAMPLE)

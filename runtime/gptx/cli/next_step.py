"""The command that most people type next with an artifact, as one line that can be pasted."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = '"Once upon a time"'


def use(artifact: Path | None, *, device: str = "cpu") -> str:
    """The command that uses an artifact for its task, on the device that the user asked for.

    artifact: None for the model that ships with gptx.
    """
    command = _command(artifact)
    return command if device == "cpu" else f"{command} --device {device}"


def _command(artifact: Path | None) -> str:
    from gptx.artifact.manifest import read_manifest
    from gptx.artifact.uses import use_command
    from gptx.model import DEFAULT_MODEL

    if artifact is None or artifact.resolve() == DEFAULT_MODEL.resolve():
        return f"gptx run {EXAMPLE}"
    return use_command(read_manifest(artifact), EXAMPLE)

"""Every error that gptx raises on purpose. Each message is one sentence for a person: what was wrong, and what to do.

    GptxError
    |-- UsageError       an option or argument that makes no sense
    |-- PromptError      a prompt that cannot be run: empty, too long, not text, a token id beyond the vocabulary
    |-- ArtifactError    a folder or file that is not what its manifest says, or not an artifact at all
    |-- CheckpointError  a checkpoint that cannot be read, or a model that gptx does not cover
    |-- ProviderError    a device that was asked for and cannot be used
    |-- ParityError      a model that is further from its reference than the limits allow
    `-- OutputError      an output that exists, cannot be written or does not fit on the disk

The command line prints them on standard error and exits with status 1; anything else is a bug and keeps its traceback.
What is obeyed, but probably not as it was meant, is a GptxWarning (`warn`): the command line prints it as one line.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any


class GptxError(Exception):
    """Every error that gptx raises on purpose: an app that catches this one catches them all."""


class UsageError(GptxError, ValueError):
    """An option or argument makes no sense, or this model cannot do what was asked."""


class PromptError(GptxError, ValueError):
    """A prompt cannot be run: it is empty, too long for the context, not text, or holds an unknown token id."""


class ArtifactError(GptxError):
    """A folder is not an artifact, or a file in it is damaged, missing or not what gptx.json says."""


class CheckpointError(GptxError):
    """A checkpoint or training text cannot be read, or gptx does not cover its model."""


class ProviderError(GptxError, RuntimeError):
    """The device that was asked for cannot be used here. The message says which library or GPU is missing."""


class ParityError(GptxError):
    """An exported or quantized model differs from its reference by more than the limits allow."""


class OutputError(GptxError, OSError):
    """An output exists already, cannot be written, or does not fit on the disk."""


class GptxWarning(UserWarning):
    """A warning by Python's `warnings`: gptx goes on, but probably not as the caller meant."""


def warn(text: str) -> None:
    """Warn of something that the app's own line did which called gptx: that line is shown with the text."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "gptx":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, GptxWarning, stacklevel=level)


def shown(value: Any, most: int = 80) -> str:
    """A value as an error message shows it: cut, on one line, and whatever it is (Python does not print integers of
    5,000 digits)."""
    try:
        text = repr(value)
    except Exception:  # whatever the value's own __repr__ does
        text = f"a {type(value).__name__} that cannot be printed"
    if "\n" in text:  # an array's rows
        text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."

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
    """Base of all of them; catch this one in an app."""


class UsageError(GptxError, ValueError):
    pass


class PromptError(GptxError, ValueError):
    pass


class ArtifactError(GptxError):
    pass


class CheckpointError(GptxError):
    pass


class ProviderError(GptxError, RuntimeError):
    pass


class ParityError(GptxError):
    pass


class OutputError(GptxError, OSError):
    pass


class GptxWarning(UserWarning):
    """What gptx warns of, with Python's `warnings`."""


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

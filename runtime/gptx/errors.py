"""The errors that gptx raises on purpose. Each message is one sentence for a person.

    GptxError
    |-- UsageError       an option or argument makes no sense, or the model cannot do what was asked
    |-- PromptError      a prompt cannot be run: empty, too long, not text, an unknown token id
    |-- ArtifactError    a folder is no artifact, or a file in it is not what gptx.json says
    |-- CheckpointError  a checkpoint or text cannot be read, or gptx does not cover the model
    |-- ProviderError    the device that was asked for cannot be used
    |-- QueueFullError   more calls came at the same time than the model's queue holds
    |-- ParityError      a model is further from its reference than the limits allow
    `-- OutputError      an output exists, cannot be written or does not fit on the disk

The command line prints an error as one line on standard error and exits with status 1. Any other
exception is a bug in gptx, and keeps its traceback.

A GptxWarning says that gptx goes on, but probably not as the caller meant.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any


class GptxError(Exception):
    """The base class of all errors that gptx raises on purpose.

    The message says what is wrong and what to do. GptxError itself is raised if no subclass fits,
    for instance if there is not enough free memory for a KV cache.

    Example: an app catches GptxError around `gptx.load` and shows its message to the user.
    """


class UsageError(GptxError, ValueError):
    """An option or argument makes no sense, or this model cannot do what was asked.

    Raised for temperature=-1, for a chat with a model that has no chat template, or for a session
    that two threads use at the same time.

    Example: change the call. The message names the argument, its value and what was expected.
    """


class PromptError(GptxError, ValueError):
    """A prompt cannot be run: it is empty, too long, not text, or holds an unknown token id.

    Example: an app asks its user for a shorter text.
    """


class QueueFullError(GptxError):
    """More calls came at the same time than the model's queue holds.

    Example: a server answers with status 503, and its client tries again later.
    """


class ArtifactError(GptxError):
    """A folder is not an artifact, or a file in it is missing, damaged or not what gptx.json says.

    Also raised if ONNX Runtime fails while it opens or runs the artifact's graph.

    Example: copy the artifact again; if the message asks for it, export it again or update gptx.
    """


class CheckpointError(GptxError):
    """A checkpoint or training text cannot be read, or gptx does not cover its model.

    Raised by import, train, finetune, merge, export and inspect.

    Example: download the checkpoint again, or export an uncovered model with --via optimum.
    """


class ProviderError(GptxError, RuntimeError):
    """The device that was asked for cannot be used here, or ONNX Runtime is missing or too old.

    The message names the missing library or GPU, and the pip command that installs what is missing.

    Example: load with device="auto", which takes the CPU if CUDA cannot be used.
    """


class ParityError(GptxError):
    """A model differs from its reference by more than the limits of its certificate allow.

    Raised by export, quantize and compile before anything is written.

    Example: quantize to more bits (int8 in place of int4), or write the output anyway: --accept.
    """


class OutputError(GptxError, OSError):
    """An output exists already, cannot be written, or does not fit on the disk.

    Example: choose another path, or replace the output with --force (force=True).
    """


class GptxWarning(UserWarning):
    """A warning by Python's `warnings`: gptx goes on, but probably not as the caller meant.

    For instance, top_k without a temperature: the likeliest token is always taken, so top_k changes
    nothing. The command line prints the warning as one line.

    Example: `warnings.simplefilter("error", gptx.GptxWarning)` turns it into an error in tests.
    """


def warn(text: str) -> None:
    """Issue a GptxWarning. Its place is the line of the app's code that called gptx."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "gptx":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, GptxWarning, stacklevel=level)


def shown(value: Any, most: int = 80) -> str:
    """The repr of a value for a message: on one line, at most `most` characters. Never fails."""
    try:
        text = repr(value)
    except Exception:  # the value's own __repr__ failed, or an integer has more than 4,300 digits
        text = f"a {type(value).__name__} that cannot be printed"
    if "\n" in text:  # an array's rows
        text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def first_of(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` texts, joined, and the number of the others: "a, b and 3 more"."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more

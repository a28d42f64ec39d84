"""gptx: run GPT artifacts on this machine. `model = gptx.load(path); model.generate("Once upon a time").text`

What is exported here is imported when it is first used: importing gptx loads neither numpy nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gptx.errors import (
    ArtifactError,
    CheckpointError,
    GptxError,
    GptxWarning,
    OutputError,
    ParityError,
    PromptError,
    ProviderError,
    UsageError,
)

if TYPE_CHECKING:
    from gptx.chat import Chat
    from gptx.classify import Classification
    from gptx.model import Model, load
    from gptx.score import Score
    from gptx.session import Session
    from gptx.stream import Completion, Stream
    from gptx.summarize import Summary
    from gptx.task import Task

    __version__: str

__all__ = [
    "ArtifactError",
    "Chat",
    "CheckpointError",
    "Classification",
    "Completion",
    "GptxError",
    "GptxWarning",
    "Model",
    "OutputError",
    "ParityError",
    "PromptError",
    "ProviderError",
    "Score",
    "Session",
    "Stream",
    "Summary",
    "Task",
    "UsageError",
    "__version__",
    "load",
]

_HOMES = {
    "Chat": "gptx.chat",
    "Classification": "gptx.classify",
    "Completion": "gptx.stream",
    "Model": "gptx.model",
    "Score": "gptx.score",
    "Session": "gptx.session",
    "Stream": "gptx.stream",
    "Summary": "gptx.summarize",
    "Task": "gptx.task",
    "load": "gptx.model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from gptx.install import version

        value: Any = version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'gptx' has no attribute {name!r}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return __all__

"""gptx runs GPT models on this machine, with ONNX Runtime.

A model is opened from an artifact: the folder that `gptx export` writes, with the ONNX graph, the
weights and the tokenizer.

    import gptx

    model = gptx.load("smollm2-int8")  # without a path: the default model
    model.generate("Once upon a time").text

Each public name is imported when it is first used: `import gptx` loads neither numpy nor ONNX
Runtime.
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
    QueueFullError,
    UsageError,
)

if TYPE_CHECKING:
    from gptx.artifact.task import Task
    from gptx.engine.stats import Stats
    from gptx.engine.stream import Stream
    from gptx.generation.session import Session
    from gptx.generation.transcript import Completion
    from gptx.model import Model, load
    from gptx.tasks.chat import Chat
    from gptx.tasks.classify import Classification
    from gptx.tasks.score import Score
    from gptx.tasks.summarize import Summary

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
    "QueueFullError",
    "Score",
    "Session",
    "Stats",
    "Stream",
    "Summary",
    "Task",
    "UsageError",
    "__version__",
    "load",
]

# The module that defines each public name (except the errors)
_HOMES = {
    "Chat": "gptx.tasks.chat",
    "Classification": "gptx.tasks.classify",
    "Completion": "gptx.generation.transcript",
    "Model": "gptx.model",
    "Score": "gptx.tasks.score",
    "Session": "gptx.generation.session",
    "Stats": "gptx.engine.stats",
    "Stream": "gptx.engine.stream",
    "Summary": "gptx.tasks.summarize",
    "Task": "gptx.artifact.task",
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
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return __all__

"""What every importer hands back: a model, its tokenizer's files, and where both came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptx.artifact.class_head import Head
from gptx_models.checkpoints.tell import Tell, quiet
from gptx_models.gpt.model import GPT

__all__ = ["Imported", "Tell", "quiet"]


@dataclass
class Imported:
    model: GPT
    source: dict[str, Any]  # becomes gptx_source.json
    tokenizer: dict[str, str] = field(
        default_factory=dict
    )  # file name -> its text; empty: no tokenizer found
    generation: dict[str, Any] = field(default_factory=dict)  # becomes generation_config.json
    head: Head | None = None  # of a model that classifies
    kept: dict[str, str] = field(
        default_factory=dict
    )  # files that are kept as they are: name -> text

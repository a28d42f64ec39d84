"""The result of an importer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptx.artifact.class_head import Head
from gptx_models.checkpoints.gguf_blocks import GgufRows
from gptx_models.checkpoints.tell import Tell, quiet
from gptx_models.gpt.model import GPT

__all__ = ["Imported", "Tell", "quiet"]


@dataclass
class Imported:
    """A model that was read, and what its files say of it.

    source: where it comes from; becomes gptx_source.json. tokenizer: the tokenizer's files, text by
    name; empty if there is none. generation: becomes generation_config.json. head: the
    classification head, None for a language model. kept: files that are copied unchanged, text by
    name. blocks: the rows of quantized weights as a GGUF file stores them, by the GPT's own names;
    become gguf_blocks.safetensors.
    """

    model: GPT
    source: dict[str, Any]
    tokenizer: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    head: Head | None = None
    kept: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, list[GgufRows]] = field(default_factory=dict)

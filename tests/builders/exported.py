"""A tiny checkpoint with a tokenizer, for export and quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders.random_gpt import random_gpt
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.data.pretraining import train_tokenizer
from gptx_models.gpt.config import GPTConfig

# A GPT-2 with head_dim 16. Its vocabulary is padded: the tokenizer has only 300 ids.
CONFIG = GPTConfig(vocab_size=304, n_ctx=128, n_layer=2, n_head=4, n_embd=64)
GENERATION: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "do_sample": False,
}


def write_checkpoint(folder: Path, config: GPTConfig = CONFIG) -> Path:
    gpt = random_gpt(config, seed=5)
    tokenizer = folder.with_name(folder.name + "-tokenizer.json")
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    train_tokenizer(["the cat sat on the mat and the dog sat on the log " * 3], 300).save(
        str(tokenizer)
    )
    save_checkpoint(
        gpt, folder, tokenizer_files=tokenizer, source={"format": "test"}, generation=GENERATION
    )
    return folder

"""Find the settings of Llama 3.1's rotary scaling from the factors in a GGUF file.

llama.cpp's converter stores one factor for each rotary frequency (rope_freqs.weight), without the
settings from which they were computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gptx.errors import CheckpointError
from gptx_models.gpt.attention import rope_tables
from gptx_models.gpt.config import GPTConfig
from gptx_models.importers.gguf_file import StoredTensor

_NAME = "rope_freqs.weight"
_OLD_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 131072)  # tried in this order


def with_rope_factors(config: GPTConfig, tensors: dict[str, StoredTensor], where: str) -> GPTConfig:
    """`config` with the rope_scaling that yields the file's factors; unchanged without factors.

    Raises CheckpointError if no known llama3 scaling yields these factors.
    """
    if _NAME not in tensors:
        return config
    stored = tensors[_NAME].values(where)
    if np.all(stored == 1.0):
        return config
    if config.rope_scaling is not None:
        raise CheckpointError(
            f"{where}: rope.scaling and {_NAME} both scale, which gptx's GPT does not compute"
        )
    n_factors = config.head_dim // 2
    if stored.shape != (n_factors,) or not np.all(np.isfinite(stored) & (stored > 0)):
        raise CheckpointError(f"{where}: {_NAME} is no list of {n_factors} positive factors")
    for old_context in _OLD_CONTEXTS:
        scaling = {
            "rope_type": "llama3",
            "factor": float(stored.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": old_context,
        }
        scaled = replace(config, rope_scaling=scaling)
        if np.allclose(_frequencies(config) / _frequencies(scaled), stored, rtol=1e-4):
            return scaled
    raise CheckpointError(f"{where}: the factors in {_NAME} are not those of Llama 3.1's scaling")


def _frequencies(config: GPTConfig) -> np.ndarray[Any, Any]:
    """The rotary frequencies, (head_dim / 2,): each pair's angle at position 1, in radians."""
    cos, sin = rope_tables(replace(config, n_ctx=2))
    return np.arctan2(sin[1].double().numpy(), cos[1].double().numpy())

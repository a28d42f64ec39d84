"""The metadata of a GGUF file of architecture llama or gpt2 -> GPTConfig.

A key that may change what is computed and that our GPT does not compute is refused by name. The
keys are those of llama.cpp's src/llama-arch.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptx.artifact.bounds import size_problem
from gptx.errors import CheckpointError
from gptx_models.gpt.config import GPTConfig, number_problem
from gptx_models.importers.gguf_file import StoredTensor
from gptx_models.importers.gguf_rope_factors import with_rope_factors

# Keys (after "ARCHITECTURE.") that do not change what gptx computes, whatever their values.
_HARMLESS = {
    "vocab_size",  # the embedding's rows are counted instead
    "tensor_data_layout",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "expert_used_count",
    "pooling_type",
    # settings of norms that the architecture does not have
    "attention.group_norm_epsilon",
    "attention.group_norm_groups",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
}
# Key -> the values that change nothing. For a key in none of these tables, only the values of _OFF
# are accepted: in some architecture of llama.cpp, other values change what is computed. Lists and
# texts are always refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (0.0, -1.0),
}
_OFF = (0, False)


def gguf_config(
    metadata: dict[str, Any], tensors: dict[str, StoredTensor], where: str
) -> GPTConfig:
    """The GPTConfig of a GGUF file. `where` names the file in messages.

    Raises CheckpointError that names every problem.
    """
    fields = _ArchitectureFields(metadata, metadata["general.architecture"])
    fields.n_layer = fields.size("block_count")
    shape: dict[str, Any] = {
        "n_ctx": fields.size("context_length"),
        "n_layer": fields.n_layer,
        "n_head": fields.size("attention.head_count"),
        "n_embd": fields.size("embedding_length"),
        "n_inner": fields.size("feed_forward_length"),
        "tied": _is_tied(tensors),
    }
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        fields.problems.append(
            f"the tensor token_embd.weight is {'missing' if embedding is None else 'no matrix'}"
        )
    else:
        shape["vocab_size"] = embedding.shape[0]
    shape |= (
        _llama(fields, shape, tensors) if fields.architecture == "llama" else _gpt2(fields, shape)
    )
    fields.note_unknown_keys()
    if fields.problems:
        raise CheckpointError(f"{where}: {'; '.join(fields.problems)}")
    try:
        return with_rope_factors(GPTConfig(**shape), tensors, where)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


class _ArchitectureFields:
    """The metadata whose keys begin with the architecture's name. `problems` are collected.

    n_layer: the number of layers, which the caller sets after reading it. A list must have one
    value for each layer.
    """

    def __init__(self, metadata: dict[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture
        self.problems: list[str] = []
        self.n_layer = 0
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """The value of ARCHITECTURE.NAME; None if there is none.

        A list with one equal value for each layer becomes that value.
        """
        key = f"{self.architecture}.{name}"
        self._read.add(key)
        value = self.metadata.get(key)
        if isinstance(value, float):
            return float(str(np.float32(value)))  # undo fp32 storage: 9.9999997e-06 -> 1e-05
        if not isinstance(value, list):
            return value
        if len(value) != self.n_layer:
            self.problems.append(
                f"{key} is a list of {len(value)}, expected one value a layer, {self.n_layer}"
            )
        elif any(item != value[0] for item in value):
            self.problems.append(f"{key} differs between layers, which gptx's GPT does not compute")
        return value[0] if value else None

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0. Without a default the key must be there."""
        value = self.get(name)
        if value is None:
            self._add(f"{self.architecture}.{name} is missing" if default is None else None)
            return default or 1
        return 1 if self._add(size_problem(f"{self.architecture}.{name}", value)) else value

    def number(self, name: str, default: float | None = None, *, low: float | None = None) -> float:
        """A number above 0, or of at least `low`. Without a default the key must be there."""
        value = self.get(name)
        if value is None:
            self._add(f"{self.architecture}.{name} is missing" if default is None else None)
            return default or 0.0
        problem = number_problem(f"{self.architecture}.{name}", value, low=low)
        return 1.0 if self._add(problem) else float(value)

    def note_unknown_keys(self) -> None:
        """Add a problem for each key that was not read and may change what is computed."""
        for key, value in self.metadata.items():
            name = key.removeprefix(f"{self.architecture}.")
            if name == key or key in self._read or name in _HARMLESS:
                continue
            if isinstance(value, list | str) or value not in _NEUTRAL.get(name, _OFF):
                self.problems.append(f"{key} is {value!r:.80}, which gptx's GPT does not compute")

    def _add(self, problem: str | None) -> bool:
        """Add a problem, if there is one. Returns whether there was."""
        self.problems += [problem] if problem else []
        return problem is not None


def _gpt2(fields: _ArchitectureFields, shape: dict[str, Any]) -> dict[str, Any]:
    if (heads := fields.size("attention.head_count_kv", shape["n_head"])) != shape["n_head"]:
        fields.problems.append(
            f"gpt2.attention.head_count_kv is {heads}, expected the {shape['n_head']} heads"
        )
    return {"norm_eps": fields.number("attention.layer_norm_epsilon", low=0.0)}


def _llama(
    fields: _ArchitectureFields, shape: dict[str, Any], tensors: dict[str, StoredTensor]
) -> dict[str, Any]:
    head_dim = fields.size("attention.key_length", max(1, shape["n_embd"] // shape["n_head"]))
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := fields.size(name, head_dim)) != head_dim:
            fields.problems.append(f"llama.{name} is {found}, expected the head's {head_dim}")
    if experts := fields.get("expert_count"):
        fields.problems.append(
            f"it is a mixture of {experts!r:.80} experts, which gptx does not cover"
        )
    _check_window(fields, shape["n_ctx"])
    return {
        "n_kv_head": fields.size("attention.head_count_kv", shape["n_head"]),
        "head_dim": head_dim,
        "position": "rope",
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields),
        "activation": "swiglu",
        "norm": "rmsnorm",
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon", low=0.0),
        "attn_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _check_window(fields: _ArchitectureFields, n_ctx: int) -> None:
    """Add a problem for a sliding window shorter than the context.

    For architecture llama, llama.cpp ignores the window, and transformers' Mistral obeys it.
    """
    window = fields.get("attention.sliding_window") or 0
    if window and (problem := size_problem("llama.attention.sliding_window", window)):
        fields.problems.append(problem)
    elif window and window < n_ctx:
        fields.problems.append(
            f"llama.attention.sliding_window is {window}, which llama.cpp does not compute here"
        )


def _rope_scaling(fields: _ArchitectureFields) -> dict[str, Any] | None:
    """The scaling of rotary positions by llama.cpp's rule.

    It is linear if no type is named. The factor has a new and an old name; 0 means 1.
    """
    kind = fields.get("rope.scaling.type")
    old = fields.number("rope.scale_linear", 0.0, low=0.0)
    factor = fields.number("rope.scaling.factor", old, low=0.0)
    if kind not in (None, "none", "linear"):
        fields.problems.append(f"llama.rope.scaling.type is {kind!r:.80}, expected none or linear")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    return {"rope_type": "linear", "factor": factor}


def _is_tied(tensors: dict[str, StoredTensor]) -> bool:
    """True if output.weight is missing or repeats token_embd.weight byte for byte.

    Older converters of GPT-2 repeat it.
    """
    embedding, head = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if head is None or embedding is None:
        return True
    return head.type == embedding.type and np.array_equal(head.data, embedding.data)

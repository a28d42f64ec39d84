"""A GGUF file that is written byte by byte, so that anything in it can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT, BOOL, STRING, ARRAY, UINT64, INT64, DOUBLE = (
    range(13)
)
CODES = {UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT: "f",
         BOOL: "?", UINT64: "Q", INT64: "q", DOUBLE: "d"}  # fmt: skip
F32, F16 = 0, 1

Key = tuple[int, Any]  # (type, value); the value of an array is (type of the items, items)
Tensor = tuple[tuple[int, ...], int, bytes]  # (shape with the rows first, type, data)
# transformers' names of the modules of a Llama layer -> GGUF's
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Gguf:
    """The contents of a GGUF file, and what is to be wrong in it."""

    keys: dict[str, Key] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    version: int = 3
    alignment: int = 32
    order: str = "<"
    n_tensors: int | None = None  # a wrong number in the header
    n_keys: int | None = None  # likewise
    twice: str = ""  # the name of a key or tensor that is written twice
    shift: int = 0  # bytes added to the offset of each tensor

    def with_keys(self, **changes: Key | None) -> Gguf:
        """A copy with changed keys. Names have two underscores for a dot; None removes a key."""
        given = {name.replace("__", "."): value for name, value in changes.items()}
        keys = {**self.keys, **given}
        return replace(
            self, keys={name: value for name, value in keys.items() if value is not None}
        )

    def with_tensor(self, name: str, shape: tuple[int, ...], kind: int, data: bytes) -> Gguf:
        return replace(self, tensors={**self.tensors, name: (shape, kind, data)})

    def write(self, path: Path) -> Path:
        keys = [*self.keys, *([self.twice] if self.twice in self.keys else [])]
        tensors = [*self.tensors, *([self.twice] if self.twice in self.tensors else [])]
        counts = (
            len(tensors) if self.n_tensors is None else self.n_tensors,
            len(keys) if self.n_keys is None else self.n_keys,
        )
        head = b"GGUF" + struct.pack(f"{self.order}IQQ", self.version, *counts)
        head += b"".join(self._text(name) + self._value(*self.keys[name]) for name in keys)
        data = b""
        for name in tensors:
            shape, kind, raw = self.tensors[name]
            head += self._text(name) + struct.pack(
                f"{self.order}I{len(shape)}Q", len(shape), *reversed(shape)
            )
            head += struct.pack(f"{self.order}IQ", kind, len(data) + self.shift)
            data += raw + bytes(-len(raw) % self.alignment)
        path.write_bytes(head + bytes(-len(head) % self.alignment) + data)
        return path

    def _text(self, text: str | bytes) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return struct.pack(f"{self.order}Q", len(raw)) + raw

    def _value(self, kind: int, value: Any) -> bytes:
        return struct.pack(f"{self.order}I", kind) + self._bare(kind, value)

    def _bare(self, kind: int, value: Any) -> bytes:
        if kind == STRING:
            return self._text(value)
        if kind == ARRAY:
            inner, items = value
            head = struct.pack(f"{self.order}IQ", inner, len(items))
            return head + b"".join(self._bare(inner, item) for item in items)
        if kind not in CODES:  # a type that no version of GGUF has
            return bytes(4)
        return struct.pack(f"{self.order}{CODES[kind]}", value)


def interleave(weight: np.ndarray, n_head: int) -> np.ndarray:
    """The rows of Q or K in the order that llama.cpp's converter gives them."""
    return (
        weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def llama(model: Any) -> Gguf:
    """transformers' LlamaForCausalLM in fp32, as llama.cpp's converter writes it."""
    config = model.config
    keys: dict[str, Key] = {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (UINT32, config.max_position_embeddings),
        "llama.embedding_length": (UINT32, config.hidden_size),
        "llama.block_count": (UINT32, config.num_hidden_layers),
        "llama.feed_forward_length": (UINT32, config.intermediate_size),
        "llama.attention.head_count": (UINT32, config.num_attention_heads),
        "llama.attention.head_count_kv": (UINT32, config.num_key_value_heads),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT, config.rms_norm_eps),
        "llama.rope.freq_base": (FLOAT, config.rope_theta),
        "llama.rope.dimension_count": (UINT32, config.head_dim),
    }
    fixed = {
        "model.embed_tokens.weight": "token_embd",
        "model.norm.weight": "output_norm",
        "lm_head.weight": "output",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        value = parameter.numpy()
        if name in fixed:
            tensors[f"{fixed[name]}.weight"] = (value.shape, F32, value.tobytes())
            continue
        _, _, layer, *module, leaf = name.split(".")
        part = GGUF_NAMES[".".join(module)]
        if part in heads:  # halves -> interleaved pairs
            value = interleave(value, heads[part])
        tensors[f"blk.{layer}.{part}.{leaf}"] = (
            value.shape,
            F32,
            np.ascontiguousarray(value).tobytes(),
        )
    return Gguf(keys, tensors)

"""GGUF files whose matrices are random blocks of any type that gptx keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from gpt_export.quantization.gguf_forms import FORMS

# Places of the float16 numbers in a block, in bytes; of other types there is one, at the start.
FLOATS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
# The size of those numbers with which weights are about 0.1.
SIZES = {"Q8_0": 1e-3, "Q4_K": 2e-4, "Q5_K": 1e-4, "Q6_K": 1e-4, "IQ4_NL": 2e-3}
WIDTH, N_HEAD, N_KV_HEAD, N_CTX, VOCAB_SIZE = 256, 4, 2, 64, 64
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // 2, WIDTH),
    "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (WIDTH, WIDTH),
    "ffn_up": (WIDTH, WIDTH),
    "ffn_down": (WIDTH, WIDTH),
}


def random_blocks(
    kind: str, rows: int = 5, blocks: int = 3, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Random bytes, except that the float16 numbers of a block are small, and of both signs.

    A block of Q4_1 has the levels 0 and 15.
    """
    rng = rng or np.random.default_rng(0)
    size = FORMS[kind][0]
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for place in FLOATS.get(kind, (0,)):
        numbers = (rng.normal(0, 1, (rows, blocks, 1)) * SIZES.get(kind, 0.02)).astype(np.float16)
        data[..., place : place + 2] = numbers.view(np.uint8)
    if kind == "Q4_1":  # llama.cpp gives a block's lowest weight level 0 and its highest level 15
        data[..., 4] = 0xF0
    return data.reshape(rows, -1)


def write_blocks_llama(
    path: Path,
    kinds: Callable[[str], str],
    *,
    n_layer: int = 1,
    tied: bool = True,
    biases: Mapping[str, int] | None = None,
) -> Path:
    """A llama of width 256. kinds: the type of each matrix by its name, such as blk.0.attn_q."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_KV_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)

    def matrix(name: str, shape: tuple[int, int]) -> None:
        kind = kinds(name)
        if kind in ("F32", "F16"):
            values = rng.normal(0, 0.1, shape)
            writer.add_tensor(f"{name}.weight", values.astype(f"float{kind[1:]}"))
            return
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        data = random_blocks(kind, shape[0], shape[1] // block, rng)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])

    matrix("token_embd", (VOCAB_SIZE, WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    if not tied:
        matrix("output", (VOCAB_SIZE, WIDTH))
    for layer in range(n_layer):
        for name, shape in SHAPES.items():
            matrix(f"blk.{layer}.{name}", shape)
        for name in ("attn_norm", "ffn_norm"):
            gain = 1 + rng.normal(0, 0.1, WIDTH)
            writer.add_tensor(f"blk.{layer}.{name}.weight", gain.astype(np.float32))
        for name, rows in (biases or {}).items():
            bias = rng.normal(0, 0.1, rows).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.{name}.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

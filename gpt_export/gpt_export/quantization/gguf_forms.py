"""The blocks of a GGUF file -> weights of native operators, exactly.

The layouts of the blocks are those of llama.cpp's ggml/src/ggml-common.h. Only levels move to other
places; scales and offsets keep their values and types. Each weight, computed in float32, has the
value that gguf.quants.dequantize gives, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_export.quantization.native_blocks import NativeBlocks, pack_levels

# ggml's kvalues_iq4nl: the levels of IQ4_NL
IQ4_NL_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
K_BLOCK = 256  # weights in a block of a K type


def from_gguf(kind: str, data: np.ndarray) -> NativeBlocks:
    """Rows of a GGUF tensor. kind: a key of FORMS. data: uint8 (rows, bytes of a row).

    Raises ValueError if the bytes are not whole blocks.
    """
    size, form = FORMS[kind]
    if not data.shape[1] or data.shape[1] % size:
        raise ValueError(f"{data.shape[1]} bytes a row, expected a multiple of {size} in {kind}")
    return form(data.reshape(len(data), -1, size))


def _q4_0(blocks: np.ndarray) -> NativeBlocks:
    """d, levels of 4 bits."""
    return _made(_nibbles(blocks[..., 2:]), 4, scales=_halves(blocks[..., :2]))


def _q4_1(blocks: np.ndarray) -> NativeBlocks:
    """d, m, levels of 4 bits."""
    return _made(_nibbles(blocks[..., 4:]), 4, **_scale_and_offset(blocks))


def _q5_0(blocks: np.ndarray) -> NativeBlocks:
    """d, fifth bits, low 4 bits."""
    levels = _nibbles(blocks[..., 6:]) | _bits(blocks[..., 2:6]) << 4
    return _made(levels, 5, scales=_halves(blocks[..., :2]))


def _q5_1(blocks: np.ndarray) -> NativeBlocks:
    """d, m, fifth bits, low 4 bits."""
    levels = _nibbles(blocks[..., 8:]) | _bits(blocks[..., 4:8]) << 4
    return _made(levels, 5, **_scale_and_offset(blocks))


def _q8_0(blocks: np.ndarray) -> NativeBlocks:
    """d, levels of -128 to 127."""
    return _made(blocks[..., 2:] ^ 0x80, 8, scales=_halves(blocks[..., :2]))


def _iq4_nl(blocks: np.ndarray) -> NativeBlocks:
    """d, places in the table."""
    table = np.array(IQ4_NL_TABLE, np.int8)
    return _made(_nibbles(blocks[..., 2:]), 4, scales=_halves(blocks[..., :2]), table=table)


def _q4_k(blocks: np.ndarray) -> NativeBlocks:
    """d, dmin, 8 factors of each in 6 bits, levels of 4 bits."""
    return _made(_k_nibbles(blocks[..., 16:]), 4, **_k_scales(blocks))


def _q5_k(blocks: np.ndarray) -> NativeBlocks:
    """d, dmin, 8 factors of each in 6 bits, fifth bits, low 4 bits.

    Bit i of the fifth bits' byte j belongs to weight j of sub-block i.
    """
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _made(_k_nibbles(blocks[..., 48:]) | high << 4, 5, **_k_scales(blocks))


def _q6_k(blocks: np.ndarray) -> NativeBlocks:
    """Low 4 bits, high 2 bits, 16 factors in 8 bits, d.

    In each half of the block, 64 bytes hold the low bits of weights 0 to 63 (low halves) and 64 to
    127 (high halves), and 32 bytes the high bits of weights j, j + 32, j + 64 and j + 96.
    """
    rows, n, _ = blocks.shape
    low = blocks[..., :128].reshape(rows, n, 2, 1, 64) >> _shifts(0, 4)[:, None] & 15
    high = blocks[..., 128:192].reshape(rows, n, 2, 1, 32) >> _shifts(0, 2, 4, 6)[:, None] & 3
    levels = low.reshape(rows, n, 16, 16) | high.reshape(rows, n, 16, 16) << 4
    factors = blocks[..., 192:208].view(np.int8)
    return _made(levels, 6, scales=_in_row(factors), scale_steps=_halves(blocks[..., 208:]))


# GGUF's type: bytes of a block, and its form
FORMS: dict[str, tuple[int, Callable[[np.ndarray], NativeBlocks]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
}


def _made(levels: np.ndarray, bits: int, **parts: Any) -> NativeBlocks:
    """levels: uint8 (rows, ..., block). parts: the other arrays of NativeBlocks, by name."""
    block = levels.shape[-1]
    packed = pack_levels(levels.reshape(len(levels), -1, block), bits)
    return NativeBlocks(packed, bits, block, **parts)


def _scale_and_offset(blocks: np.ndarray) -> dict[str, np.ndarray]:
    """d and m at the start of each block."""
    return {"scales": _halves(blocks[..., :2]), "offsets": _halves(blocks[..., 2:4])}


def _k_scales(blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Scales d * factor and offsets -dmin * factor: d, dmin, then 8 factors of each in 12 bytes.

    The factors of sub-blocks 0 to 3 are the low 6 bits of bytes 0 to 3 (of d) and 4 to 7 (of
    dmin). Those of sub-blocks 4 to 7 have their low 4 bits in bytes 8 to 11, and their high 2 bits
    above those of sub-blocks 0 to 3.
    """
    of_d, of_dmin, low = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate((of_d & 63, low & 15 | of_d >> 2 & 48), axis=-1)
    offsets = np.concatenate((of_dmin & 63, low >> 4 | of_dmin >> 2 & 48), axis=-1)
    return {
        "scales": _in_row(scales.view(np.int8)),
        "scale_steps": _halves(blocks[..., :2]),
        "offsets": _in_row(offsets.view(np.int8)),
        "offset_steps": -_halves(blocks[..., 2:4]),
    }


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """16 bytes -> 32 levels: the low halves of all bytes, then the high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _k_nibbles(packed: np.ndarray) -> np.ndarray:
    """128 bytes -> (8, 32) levels. 32 bytes hold two sub-blocks, in their low and high halves."""
    pairs = packed.reshape(*packed.shape[:-1], 4, 1, 32)
    return (pairs >> _shifts(0, 4)[:, None] & 15).reshape(*packed.shape[:-1], 8, 32)


def _bits(packed: np.ndarray) -> np.ndarray:
    """4 bytes -> 32 bits, the lowest first."""
    return np.unpackbits(packed, axis=-1, bitorder="little")


def _shifts(*counts: int) -> np.ndarray:
    return np.array(counts, np.uint8)


def _halves(raw: np.ndarray) -> np.ndarray:
    """Two bytes of each block -> float16 (rows, blocks)."""
    return np.ascontiguousarray(raw).view(np.float16)[..., 0]


def _in_row(numbers: np.ndarray) -> np.ndarray:
    """(rows, blocks, numbers of a block) -> (rows, numbers of a row)."""
    return np.ascontiguousarray(numbers).reshape(len(numbers), -1)

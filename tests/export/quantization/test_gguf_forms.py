"""Blocks of GGUF files as weights of native operators, against gguf's own dequantize."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from gpt_export.quantization.gguf_forms import FORMS, from_gguf
from gpt_export.quantization.native_blocks import dequantize_native, pack_levels, unpack_levels
from gptx_models.checkpoints.gguf_blocks import KEPT_TYPES

# Places of the float16 numbers in a block, in bytes.
FLOATS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_blocks(kind: str, rows: int = 5, blocks: int = 3, seed: int = 0) -> np.ndarray:
    """Random bytes, except that the float16 numbers of a block are finite, of both signs."""
    rng = np.random.default_rng(seed)
    size = FORMS[kind][0]
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for place in FLOATS.get(kind, (0,)):
        numbers = rng.normal(0, 0.1, (rows, blocks, 1)).astype(np.float16)
        data[..., place : place + 2] = numbers.view(np.uint8)
    return data.reshape(rows, -1)


def test_forms_cover_the_types_that_import_keeps() -> None:
    assert tuple(FORMS) == KEPT_TYPES


@pytest.mark.parametrize("kind", KEPT_TYPES)
def test_values_are_those_of_gguf(kind: str) -> None:
    data = random_blocks(kind)
    expected = gguf.dequantize(data, GGMLQuantizationType[kind])
    made = from_gguf(kind, data)
    assert made.shape == expected.shape
    np.testing.assert_array_equal(dequantize_native(made), expected)
    stored = made.nbytes / data.nbytes  # factors of 6 bits take 8
    assert stored == 1 if kind not in ("Q4_K", "Q5_K") else stored < 1.03


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_packed_levels_are_unpacked(bits: int) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << bits, (3, 2, 32), dtype=np.uint8)
    packed = pack_levels(levels, bits)
    assert packed.shape == (3, 2, 4 * bits)
    np.testing.assert_array_equal(unpack_levels(packed, bits, 32), levels)


def test_half_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="35 bytes a row, expected a multiple of 18 in Q4_0"):
        from_gguf("Q4_0", np.zeros((2, 35), np.uint8))

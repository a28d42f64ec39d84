"""Blocks of GGUF files as weights of native operators, against gguf's own dequantize."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from builders.block_files import random_blocks
from gpt_export.quantization.gguf_forms import FORMS, from_gguf
from gpt_export.quantization.native_blocks import dequantize_native, pack_levels, unpack_levels
from gptx_models.checkpoints.gguf_blocks import KEPT_TYPES


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

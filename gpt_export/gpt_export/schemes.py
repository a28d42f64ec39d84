"""The quantization schemes by name: which weights take how many bits, in blocks of how many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gpt_export.blocks import BlockWeights, fitting_block, quantize_blocks
from gptx_models.model import GPT


@dataclass(frozen=True)
class Scheme:
    """Bits and block of the layers' products, and of the head and embedding."""

    bits: int
    block: int
    head_bits: int
    head_block: int


# 8 bits in blocks of 64: in blocks of 128 MatMulNBits adds up a single row in another order than two or more (by 2e-6 on
# AVX-512, ORT 1.32), the next rounding of activations turns that into a whole step, and a row of a batch then gives other
# text than the row alone. Up to 64 the rows are equal to the bit, for about a tenth of the prefill's speed.
# 4 bits need the small blocks; a 4-bit head makes a GPT loop (onnxruntime issue 24384), so it keeps 8.
SCHEMES = {
    "int8": Scheme(bits=8, block=64, head_bits=8, head_block=64),
    "int4": Scheme(bits=4, block=32, head_bits=8, head_block=64),
}


def quantize_weights(gpt: GPT, scheme: Scheme) -> dict[str, BlockWeights]:
    """Every product's weight, and the embedding's where its width is made of whole blocks (else it stays fp32).

    A tied head and embedding share one entry's arrays. A width that the block does not divide takes the next smaller
    power of two that does.
    """
    blocks: dict[str, BlockWeights] = {}
    for name, module in gpt.named_modules():
        if isinstance(module, nn.Linear):
            bits, wanted = (scheme.head_bits, scheme.head_block) if name == "head" else (scheme.bits, scheme.block)
            block = fitting_block(module.in_features, wanted)
            blocks[f"{name}.weight"] = quantize_blocks(_array(module.weight), bits=bits, block=block)
    block = fitting_block(gpt.config.n_embd, scheme.head_block)
    if gpt.config.n_embd % block == 0:
        table = blocks["head.weight"] if gpt.config.head_is_embedding else None
        blocks["wte.weight"] = table or quantize_blocks(_array(gpt.wte.weight), bits=8, block=block)
    return blocks


def describe(name: str, blocks: dict[str, BlockWeights]) -> dict[str, Any]:
    """For gptx.json: the scheme with its parameters, and what each tensor became."""
    return {
        "scheme": name,
        **asdict(SCHEMES[name]),
        "rounding": "to nearest, symmetric",
        "activations": "8 bits a block of a row (MatMulNBits accuracy_level 4)",
        "tensors": {key: {"bits": value.bits, "block": value.block} for key, value in blocks.items()},
    }


def _array(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().numpy()

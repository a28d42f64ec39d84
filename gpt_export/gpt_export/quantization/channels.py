"""Int8 weights with a scale per output channel, in the layout of MatMulIntegerToFloat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt_export.quantization.gptq import Rounded


@dataclass(frozen=True)
class ChannelWeights:
    """A matrix w[o, i] = scales[o] * levels[i, o]."""

    levels: np.ndarray  # int8 (n_in, n_out)
    scales: np.ndarray  # float32 (n_out,)
    activation_bits: int = 8  # of the product: 8, or 16 in two terms (see ChannelProduct)

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[1], self.levels.shape[0]


def pack_channels(rounded: Rounded, *, exact: bool = False) -> ChannelWeights:
    """Lay out a rounded matrix as MatMulIntegerToFloat reads it.

    exact: activations in 16 bits instead of 8.
    """
    levels = rounded.levels.numpy().astype(np.int8)
    return ChannelWeights(
        np.ascontiguousarray(levels.T), rounded.scales[:, 0].numpy().copy(), 16 if exact else 8
    )

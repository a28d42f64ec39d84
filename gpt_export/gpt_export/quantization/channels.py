"""Weights with one scale for each output channel, as MatMulIntegerToFloat reads them: int8 (n_in, n_out)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt_export.quantization.gptq import Rounded


@dataclass(frozen=True)
class ChannelWeights:
    """w[o, i] = scales[o] * levels[i, o]; `activation_bits`: that the product computes with, 8 or (in two terms) 16."""

    levels: np.ndarray  # int8 (n_in, n_out)
    scales: np.ndarray  # float32 (n_out,)
    activation_bits: int = 8

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[1], self.levels.shape[0]


def pack_channels(rounded: Rounded, *, exact: bool = False) -> ChannelWeights:
    levels = rounded.levels.numpy().astype(np.int8)
    return ChannelWeights(
        np.ascontiguousarray(levels.T), rounded.scales[:, 0].numpy().copy(), 16 if exact else 8
    )

"""Weights with one scale for each output channel, as MatMulIntegerToFloat reads them: int8 (n_in, n_out)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt_export.rounding import Rounded


@dataclass(frozen=True)
class ChannelWeights:
    """w[o, i] = scales[o] * levels[i, o]; `terms`: 8-bit numbers that each activation is written as, 1 or 2."""

    levels: np.ndarray  # int8 (n_in, n_out)
    scales: np.ndarray  # float32 (n_out,)
    terms: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[1], self.levels.shape[0]


def pack_channels(rounded: Rounded, terms: int = 1) -> ChannelWeights:
    levels = rounded.levels.numpy().astype(np.int8)
    return ChannelWeights(np.ascontiguousarray(levels.T), rounded.scales[:, 0].numpy().copy(), terms)

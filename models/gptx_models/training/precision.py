"""The precision of matrix products in training: what `precision = "auto"` means on a device."""

from __future__ import annotations

import dataclasses

import torch

from gptx.system.cpu import cpu_features
from gptx_models.training.recipe import Recipe

# The features (gptx.system.cpu) with which PyTorch's CPU kernels multiply bf16 faster than fp32.
_BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


def has_fast_bf16(device: torch.device) -> bool:
    """True if the device has instructions for products of bf16.

    Without them bf16 products take several times as long as fp32 (docs/decisions/training.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and not _BF16_FEATURES.isdisjoint(cpu_features())


def resolve_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with "bf16" or "fp32" in place of "auto"."""
    if recipe.precision != "auto":
        return recipe
    precision = "bf16" if has_fast_bf16(device) else "fp32"
    return dataclasses.replace(recipe, precision=precision)
